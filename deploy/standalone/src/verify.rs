//! `standalone verify`: an export of the audit log against signed checkpoints, without any server.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Result;
use audit_service::archive::Manifest;
use audit_service::checkpoint::VerifierKey;
use audit_service::verify::{End, Verifier};
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
    /// Checkpoints, a JSON object with a "note" a line: answers of GetCheckpoint (jq -c .), or
    /// the file in which the service keeps them. Again for more files.
    #[arg(long, value_name = "FILE")]
    checkpoints: Vec<PathBuf>,
    /// A key to believe, NAME+ID+BASE64, that you were told by somebody else than the server.
    /// Again for more; a witness's key makes cosignatures count. Keys of logs have one name:
    /// lines do not say of which deployment they are.
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<VerifierKey>,
}

/// Prints what was found, the verdict last; gives the exit status.
///
/// # Errors
///
/// A file that cannot be read, an end or a line of checkpoints that is no JSON of its kind, or
/// keys of several logs.
pub fn run(args: VerifyArgs) -> Result<u8> {
    let mut verifier = Verifier::new(args.keys).map_err(|error| refused(error.to_string()))?;
    for file in &args.checkpoints {
        lines(file, |line| {
            let value: Value = serde_json::from_str(line).unwrap_or(Value::Null);
            let note = value["note"].as_str();
            verifier
                .checkpoint(note.ok_or_else(|| refused(format!("{} has a line without \"note\"", file.display())))?);
            Ok(())
        })?;
    }
    if let Some(export) = &args.export {
        lines(export, |line| {
            verifier.line(line);
            Ok(())
        })?;
    }
    if let Some(folder) = &args.archive {
        segments(folder, &mut verifier)?;
    }
    if let Some(file) = &args.end {
        verifier.end(end(file)?);
    }
    let report = verifier.finish();
    // If standard output is closed there is nobody to tell; the exit status says it too.
    let _ = writeln!(std::io::stdout().lock(), "{report}");
    Ok(report.verdict.exit_code())
}

fn unreadable(file: &Path, error: &dyn std::fmt::Display) -> anyhow::Error {
    refused(format!("cannot read {}: {error}", file.display()))
}

/// Line after line, so that an export may be larger than memory.
fn lines(file: &Path, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let open = File::open(file).map_err(|error| unreadable(file, &error))?;
    let mut reader = BufReader::with_capacity(1 << 20, open);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line).map_err(|error| unreadable(file, &error))? == 0 {
            return Ok(());
        }
        each(line.strip_suffix('\n').unwrap_or(&line))?;
    }
}

/// Every segment in a folder of the archive, one in memory at a time.
fn segments(folder: &Path, verifier: &mut Verifier) -> Result<()> {
    let listed = std::fs::read_dir(folder).and_then(|listed| listed.collect::<std::io::Result<Vec<_>>>());
    let mut paths: Vec<PathBuf> =
        listed.map_err(|error| unreadable(folder, &error))?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            segments(&path, verifier)?;
        } else if path.extension().is_some_and(|extension| extension == "json") {
            let bytes = std::fs::read(&path).map_err(|error| unreadable(&path, &error))?;
            let manifest = Manifest::parse(&bytes)
                .map_err(|error| refused(format!("{} is no manifest: {error}", path.display())))?;
            let lines = path.with_extension("jsonl.zst");
            let data = std::fs::read(&lines).map_err(|error| unreadable(&lines, &error))?;
            verifier.segment(&manifest, data);
        }
    }
    Ok(())
}

fn end(file: &Path) -> Result<End> {
    let text = std::fs::read_to_string(file).map_err(|error| unreadable(file, &error))?;
    End::from_json(&text).ok_or_else(|| refused(format!("{} is not the end of an export", file.display())))
}
