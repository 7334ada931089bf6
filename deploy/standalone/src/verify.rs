//! `standalone verify`: an export of the audit log against signed checkpoints, without any server.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use audit_service::archive::Manifest;
use audit_service::verify::{End, PinnedKey, Verifier};
use clap::Args;
use serde_json::Value;

use crate::refused;

/// What to verify, and against what.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The export: lines of canonical JSON, as ExportEntries writes them (JSONL).
    #[arg(long, value_name = "FILE.jsonl", required_unless_present = "archive")]
    export: Option<PathBuf>,
    /// The archive's folder, or a copy: every segment in it is verified by itself, and with an export
    /// it makes up for what retention has removed.
    #[arg(long, value_name = "FOLDER")]
    archive: Option<PathBuf>,
    /// The export's end message as JSON: {"entries": "3", "sha256": "…", "heads": […]}. It
    /// tells what is missing at the end that no checkpoint covers; without it, that goes
    /// unnoticed.
    #[arg(long, value_name = "FILE.json")]
    end: Option<PathBuf>,
    /// The proofs that came with the chunks of an export (with_proofs), a line for each of its
    /// lines: an entry that was changed is named, where without them the range between two
    /// checkpoints is. They go by the end.
    #[arg(long, value_name = "FILE", requires = "export", requires = "end")]
    proofs: Option<PathBuf>,
    /// A filter has left entries out: each that is there is verified by its proof, and none is
    /// missed.
    #[arg(long, requires = "proofs")]
    filtered: bool,
    /// Checkpoints, a JSON object with a "note" a line: answers of GetCheckpoint (jq -c .), or
    /// the file in which the service keeps them. Again for more files.
    #[arg(long, value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A key to believe, NAME+ID+BASE64, that you were told by somebody else than the server.
    /// Again for more; a witness's key makes cosignatures count. KEY@INSTANCE:FIRST-LAST is good for
    /// checkpoints over so many entries of a log, as ListKeys has it ("pin") of keys that were
    /// replaced; KEY@FIRST-LAST, as KEY@-5000, for so many of any. What it has signed beyond is
    /// altered. Keys of logs have one name: lines do not say of which deployment they are.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<PinnedKey>,
}

/// More than checkpoints of a hundred years take, one every ten minutes.
const CHECKPOINTS_BYTES: u64 = 4 << 30;

/// Prints what was found, the verdict last; gives the exit status.
///
/// # Errors
///
/// A file that cannot be read, an end or a line of checkpoints that is no JSON of its kind, or
/// keys of several logs.
pub fn run(args: VerifyArgs) -> Result<u8> {
    let mut verifier = Verifier::new(args.keys).map_err(|error| refused(error.to_string()))?;
    for file in &args.checkpoints {
        for line in BufReader::new(open(file)?.take(CHECKPOINTS_BYTES)).lines() {
            let line = line.map_err(|error| unreadable(file, &error))?;
            let value: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
            let note = value["note"].as_str();
            verifier
                .checkpoint(note.ok_or_else(|| refused(format!("{} has a line without \"note\"", file.display())))?);
        }
    }
    if let Some(file) = &args.end {
        verifier.end(end(file)?);
    }
    let segments = args.archive.as_deref().map(segments).transpose()?.unwrap_or_default();
    for manifest in &segments {
        verifier.expect_segment(&self::manifest(manifest)?);
    }
    if let Some(export) = &args.export {
        let reader = BufReader::with_capacity(1 << 20, open(export)?);
        let read = match &args.proofs {
            None => verifier.export(reader),
            Some(proofs) => {
                verifier.proven_export(reader, BufReader::with_capacity(1 << 20, open(proofs)?), args.filtered)
            }
        };
        read.map_err(|error| unreadable(export, &error))?;
    }
    // One in memory at a time.
    for path in &segments {
        let lines = path.with_extension("jsonl.zst");
        let data = std::fs::read(&lines).map_err(|error| unreadable(&lines, &error))?;
        verifier.segment(&manifest(path)?, data);
    }
    let report = verifier.finish();
    // If standard output is closed there is nobody to tell; the exit status says it too.
    let _ = writeln!(std::io::stdout().lock(), "{report}");
    Ok(report.verdict.exit_code())
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    refused(format!("cannot read {}: {error}", file.display()))
}

fn open(file: &Path) -> Result<File> {
    File::open(file).map_err(|error| unreadable(file, &error))
}

/// The manifests of every segment in a folder of the archive.
fn segments(folder: &Path) -> Result<Vec<PathBuf>> {
    let listed = std::fs::read_dir(folder).and_then(|listed| listed.collect::<std::io::Result<Vec<_>>>());
    let mut paths: Vec<PathBuf> =
        listed.map_err(|error| unreadable(folder, &error))?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if path.is_dir() {
            found.extend(segments(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "json") {
            found.push(path);
        }
    }
    Ok(found)
}

fn manifest(path: &Path) -> Result<Manifest> {
    let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    Manifest::parse(&bytes).map_err(|error| refused(format!("{} is no manifest: {error}", path.display())))
}

fn end(file: &Path) -> Result<End> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    End::from_json(&text).ok_or_else(|| refused(format!("{} is not the end of an export", file.display())))
}
