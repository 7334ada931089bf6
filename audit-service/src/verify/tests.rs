//! The tampering drill: everything that can be done to an export is found, and said where.

use super::*;
use crate::archive::{Proof, SegmentBuilder, needed_tiles};
use crate::canonical::fixtures;
use crate::checkpoint::SigningKey;
use crate::event::{Entry, Producer};
use crate::merkle::{Frontier, Hash, Plan, Tile, TileId, TileSet};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

const INSTANCE: &str = "prod";

struct Evidence {
    lines: Vec<String>,
    notes: Vec<String>,
    key: SigningKey,
    witness: SigningKey,
}

fn entry(sequence: u64) -> Entry {
    let mut entry = fixtures::full();
    entry.sequence = sequence;
    entry.recorded_at_us += sequence.cast_signed();
    entry.event.instance_id = INSTANCE.into();
    entry.event.id = uuid::Uuid::from_u128(u128::from(sequence) + 1);
    entry.event.producer = Some(Producer { id: "gateway".into(), epoch: 3, sequence });
    entry
}

fn lines(count: u64) -> Vec<String> {
    (0..count).map(|sequence| canonical::to_string(&entry(sequence))).collect()
}

fn note(lines: &[String], size: usize, signing: &[&SigningKey]) -> String {
    let frontier: Frontier = lines[..size].iter().map(|line| canonical::leaf_hash(line)).collect();
    let origin = format!("localhost/audit/{INSTANCE}");
    let text = Checkpoint { origin, size: size as u64, root: frontier.root() }.text();
    let signatures = signing.iter().map(|key| key.sign(&text, 1_700_000_000 + size as u64)).collect();
    Note::new(text, signatures).unwrap().to_string()
}

/// Ten entries, and checkpoints over 4, 7 and 10 of them.
fn evidence() -> Evidence {
    let lines = lines(10);
    let key = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap().0;
    let witness = SigningKey::generate("localhost/audit/witness", KeyKind::Witness).unwrap().0;
    let notes = [4, 7, 10].map(|size| note(&lines, size, &[&key, &witness])).to_vec();
    Evidence { lines, notes, key, witness }
}

fn end_of(lines: &[String]) -> End {
    let mut sha256 = Sha256::new();
    lines.iter().for_each(|line| sha256.update(format!("{line}\n")));
    End {
        entries: lines.len() as u64,
        sha256: sha256.finalize().to_vec(),
        heads: BTreeMap::from([head(lines.len() as u64)]),
        frozen_at_s: None,
    }
}

/// A head that nothing connects with a checkpoint.
fn head(size: u64) -> (String, Head) {
    (INSTANCE.to_owned(), Head { size, ..Head::default() })
}

impl Evidence {
    fn keys(&self) -> Vec<VerifierKey> {
        vec![self.key.verifier().clone(), self.witness.verifier().clone()]
    }

    fn verify_with(&self, keys: Vec<VerifierKey>, lines: &[String], end: Option<End>) -> Report {
        let mut verifier = Verifier::new(keys).unwrap();
        self.notes.iter().for_each(|note| verifier.checkpoint(note));
        if let Some(end) = end {
            verifier.end(end);
        }
        let export: String = lines.iter().map(|line| format!("{line}\n")).collect();
        verifier.export(export.as_bytes()).unwrap();
        verifier.finish()
    }

    fn verify(&self, lines: &[String]) -> Report {
        self.verify_with(self.keys(), lines, None)
    }
}

#[track_caller]
fn assert_found(report: &Report, verdict: Verdict, what: &str) {
    assert_eq!(report.verdict, verdict, "{report}");
    assert!(report.to_string().contains(what), "no {what:?} in:\n{report}");
}

#[test]
fn what_was_signed_is_valid_in_any_order() {
    let evidence = evidence();
    let report = evidence.verify_with(evidence.keys(), &evidence.lines, Some(end_of(&evidence.lines)));
    assert_found(&report, Verdict::Valid, "the first 10 entries are as they were signed");
    assert_found(&report, Verdict::Valid, "the first 10 were there at 1700000010 s");
    assert_eq!(report.verdict.exit_code(), 0);
    // An export by time has them in another order.
    let backwards: Vec<String> = evidence.lines.iter().rev().cloned().collect();
    assert_found(&evidence.verify(&backwards), Verdict::Valid, "10 entries of 1 logs");
}

#[test]
fn every_change_is_found_between_two_checkpoints() {
    let evidence = evidence();
    let changed = |at: usize, from: &str, to: &str| {
        let mut lines = evidence.lines.clone();
        assert!(lines[at].contains(from), "{}", lines[at]);
        lines[at] = lines[at].replacen(from, to, 1);
        lines
    };
    let mut swapped = evidence.lines.clone();
    let by = |sequence: u64, id: u64| {
        let mut entry = entry(id);
        entry.sequence = sequence;
        canonical::to_string(&entry)
    };
    (swapped[5], swapped[6]) = (by(5, 6), by(6, 5));
    let inserted: Vec<String> =
        (0..11).map(|sequence| by(sequence, if sequence > 2 { sequence + 100 } else { sequence })).collect();
    for (lines, range) in [
        (changed(8, "\"recordedAt\":\"2", "\"recordedAt\":\"1"), "entries 7 to 9"),
        (changed(2, "\"occurredAt\":\"2", "\"occurredAt\":\"1"), "entries 0 to 3"),
        (changed(4, "\"displayName\":\"Ada", "\"displayName\":\"Eve"), "entries 4 to 6"),
        (swapped, "entries 4 to 6"),
        (inserted, "entries 0 to 3"),
    ] {
        assert_found(&evidence.verify(&lines), Verdict::Altered, range);
    }
    let report = evidence.verify(&changed(3, "{\"action\"", "{ \"action\""));
    assert_found(&report, Verdict::Altered, "line 4");
    assert_eq!(report.verdict.exit_code(), 1);
    let mut twice = evidence.lines.clone();
    twice.push(twice[4].clone());
    assert_found(&evidence.verify(&twice), Verdict::Altered, "sequence 4 is there twice");
}

#[test]
fn what_is_missing_is_told_with_its_place() {
    let evidence = evidence();
    let without = |at: usize| {
        let mut lines = evidence.lines.clone();
        lines.remove(at);
        lines
    };
    for (at, what) in [
        (0, "entries 0 to 0 are missing"),
        (5, "entries 5 to 5 are missing"),
        (9, "entries 9 to 9 are missing at its end"),
    ] {
        let report = evidence.verify(&without(at));
        assert_found(&report, Verdict::Incomplete, what);
        assert_eq!(report.verdict.exit_code(), 2);
    }
    // What lies before the gap is proven all the same.
    assert_found(&evidence.verify(&without(8)), Verdict::Incomplete, "the first 7 entries are as they were signed");
    assert_found(&evidence.verify(&without(5)), Verdict::Incomplete, "producer \"gateway\", epoch 3, numbers 5 to 5");
    // Its end knows of more than was signed.
    let mut end = end_of(&evidence.lines);
    end.heads.extend([head(12)]);
    let report = evidence.verify_with(evidence.keys(), &evidence.lines, Some(end));
    assert_found(&report, Verdict::Incomplete, "entries 10 to 11 are missing at its end");
    let report = evidence.verify_with(evidence.keys(), &evidence.lines[..9], Some(end_of(&evidence.lines)));
    assert_found(&report, Verdict::Incomplete, "the export has 9 entries, and its end says 10");
}

#[test]
fn an_export_that_is_not_its_ends_is_altered() {
    let evidence = evidence();
    let mut end = end_of(&evidence.lines);
    end.sha256[0] ^= 1;
    assert_found(
        &evidence.verify_with(evidence.keys(), &evidence.lines, Some(end)),
        Verdict::Altered,
        "another SHA-256",
    );
}

#[test]
fn an_end_is_read_as_grpcurl_prints_it() {
    let text = r#"{"entries": "3", "sha256": "AAEC", "heads": [{"instanceId": "prod", "size": "12"}]}"#;
    let end = End { entries: 3, sha256: vec![0, 1, 2], heads: BTreeMap::from([head(12)]), frozen_at_s: None };
    assert_eq!(End::from_json(text), Some(end));
    let hash = BASE64.encode([7; 32]);
    let text = format!(
        r#"{{"entries": 3, "sha256": "AAEC", "frozenAt": "2023-11-14T22:13:20.5Z", "heads": [{{"instanceId": "prod",
           "size": 12, "rootHash": "{hash}", "checkpoint": "note", "consistencyHashes": ["{hash}"]}}]}}"#
    );
    let end = End::from_json(&text).unwrap();
    let head = Head { size: 12, root: vec![7; 32], checkpoint: Some("note".into()), consistency: vec![[7; 32]] };
    assert_eq!((&end.heads["prod"], end.frozen_at_s), (&head, Some(1_700_000_000)));
    for wrong in ["", "{}", "[]", r#"{"entries": "-1", "sha256": "AAEC"}"#, r#"{"entries": "3", "sha256": "?"}"#] {
        assert_eq!(End::from_json(wrong), None, "{wrong}");
    }
}

#[test]
fn a_log_that_was_cut_and_grown_again_is_another_history() {
    let mut evidence = evidence();
    let mut lines = evidence.lines[..6].to_vec();
    lines.extend((6..12).map(|sequence| {
        let mut entry = entry(sequence);
        entry.event.reason = "another".into();
        canonical::to_string(&entry)
    }));
    assert_found(&evidence.verify(&lines), Verdict::Altered, "entries 4 to 6");
    // Who has the key signs it; who kept a checkpoint sees two histories.
    evidence.notes.push(note(&lines, 10, &[&evidence.key]));
    assert_found(&evidence.verify(&lines), Verdict::Altered, "two histories");
}

#[test]
fn nothing_is_established_by_keys_that_nobody_pinned() {
    let evidence = evidence();
    let report = evidence.verify_with(Vec::<VerifierKey>::new(), &evidence.lines, None);
    assert_found(&report, Verdict::NotEstablished, "no key was pinned");
    assert_eq!(report.verdict.exit_code(), 3);
    let other = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap().0;
    let report = evidence.verify_with(vec![other.verifier().clone()], &evidence.lines, None);
    assert_found(&report, Verdict::NotEstablished, "3 checkpoints by no key that is pinned");
    // A witness alone says nothing of which log it was.
    let report = evidence.verify_with(vec![evidence.witness.verifier().clone()], &evidence.lines, None);
    assert_eq!(report.verdict, Verdict::NotEstablished);
}

#[test]
fn how_far_the_evidence_reaches_is_told() {
    let mut evidence = evidence();
    evidence.notes = vec![note(&evidence.lines, 7, &[&evidence.key])];
    let report = evidence.verify(&evidence.lines);
    assert_found(&report, Verdict::NotEstablished, "entries 7 to 9 are under no checkpoint");
    assert_found(&report, Verdict::NotEstablished, "signed, not cosigned");
    evidence.notes = vec!["no note".into()];
    assert_found(&evidence.verify(&evidence.lines), Verdict::Altered, "a checkpoint cannot be read");
    evidence.notes = vec![note(&evidence.lines, 10, &[&evidence.key]).replacen("\n10\n", "\n11\n", 1)];
    assert_found(&evidence.verify(&evidence.lines), Verdict::Altered, "does not hold");
}

#[test]
fn nothing_is_not_valid() {
    let mut evidence = evidence();
    assert_found(&evidence.verify(&[]), Verdict::Incomplete, "entries 0 to 9 are missing");
    let other = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap().0.verifier().clone();
    let report = evidence.verify_with(vec![other], &[], Some(end_of(&[])));
    assert_found(&report, Verdict::NotEstablished, "nothing in it is under a checkpoint by a pinned key");
    evidence.notes.clear();
    let report = evidence.verify_with(evidence.keys(), &[], Some(end_of(&[])));
    assert_found(&report, Verdict::NotEstablished, "nothing in it is under a checkpoint by a pinned key");
    // A checkpoint over nothing proves nothing.
    evidence.notes = vec![note(&[], 0, &[&evidence.key])];
    assert_eq!(evidence.verify(&[]).verdict, Verdict::NotEstablished);
}

#[test]
fn a_log_of_which_no_line_is_left_is_missed() {
    let evidence = evidence();
    let mut end = end_of(&evidence.lines);
    end.heads.insert("gone".into(), head(12).1);
    end.heads.insert("empty".into(), head(0).1);
    let report = evidence.verify_with(evidence.keys(), &evidence.lines, Some(end));
    assert_found(&report, Verdict::Incomplete, "log \"gone\": entries 0 to 11 are missing at its end");
    assert!(!report.to_string().contains("\"empty\""), "{report}");
}

#[test]
fn an_export_without_its_end_is_told_so() {
    let evidence = evidence();
    let what = "without the export's end message";
    assert_found(&evidence.verify(&evidence.lines), Verdict::Valid, what);
    let report = evidence.verify_with(evidence.keys(), &evidence.lines, Some(end_of(&evidence.lines)));
    assert!(!report.to_string().contains(what), "{report}");
}

#[test]
fn a_key_vouches_for_logs_of_its_own_name_alone() {
    let evidence = evidence();
    let other = SigningKey::generate("elsewhere", KeyKind::Log).unwrap().0;
    let both = [evidence.keys(), vec![other.verifier().clone()]].concat();
    let refused = Verifier::new(both).unwrap_err().to_string();
    assert!(refused.contains("\"localhost/audit\" and \"elsewhere\""), "{refused}");
    // A key that signs for another name is not believed.
    let frontier: Frontier = evidence.lines.iter().map(|line| canonical::leaf_hash(line)).collect();
    let text = Checkpoint { origin: format!("elsewhere/{INSTANCE}"), size: 10, root: frontier.root() }.text();
    let foreign = Note::new(text.clone(), vec![evidence.key.sign(&text, 0)]).unwrap().to_string();
    let foreign = Evidence { notes: vec![foreign], ..evidence };
    assert_found(&foreign.verify(&foreign.lines), Verdict::NotEstablished, "1 checkpoints by no key that is pinned");
    // During a change of keys there are two of one name.
    let new = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap().0;
    assert!(Verifier::new([foreign.keys(), vec![new.verifier().clone()]].concat()).is_ok());
}

/// A log whose first six entries are archived, as the eighth tells.
fn archived(frontier_of: u64) -> Evidence {
    let mut evidence = evidence();
    let frontier: Frontier =
        evidence.lines[..frontier_of as usize].iter().map(|line| canonical::leaf_hash(line)).collect();
    let hex = |hash: &Hash| hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let peaks: Vec<String> = frontier.peaks().iter().map(hex).collect();
    let mut tells = entry(7);
    tells.event.action = crate::retention::ARCHIVED.into();
    tells.recorded_by = "audit-service".into();
    tells.event.details_json = serde_json::json!({ "end_sequence": "6", "frontier": peaks }).to_string();
    evidence.lines[7] = canonical::to_string(&tells);
    let signing = [&evidence.key, &evidence.witness];
    evidence.notes = [4, 7, 10].map(|size| note(&evidence.lines, size, &signing)).to_vec();
    evidence
}

#[test]
fn what_is_archived_by_policy_is_told_from_what_is_missing() {
    let evidence = archived(6);
    let left = &evidence.lines[6..];
    let report = evidence.verify(left);
    assert_found(&report, Verdict::Valid, "entries 0 to 5 were archived by policy, as entry 7 tells");
    assert_found(&report, Verdict::Valid, "entries 6 to 9 are as they were signed");
    assert_found(&evidence.verify(&evidence.lines), Verdict::Valid, "the first 10 entries are as they were signed");
    // More is gone than was archived, or the entry that tells of it.
    assert_found(&evidence.verify(&evidence.lines[7..]), Verdict::Incomplete, "entries 0 to 6 are missing");
    let without = [&left[..1], &left[2..]].concat();
    assert_found(&evidence.verify(&without), Verdict::Incomplete, "entries 0 to 5 are missing");
    // What is left was changed.
    let mut changed = left.to_vec();
    changed[3] = changed[3].replacen("2023", "2022", 1).replacen("2024", "2022", 1).replacen("2026", "2022", 1);
    assert_ne!(changed, left);
    assert_found(&evidence.verify(&changed), Verdict::Altered, "are not those that were signed");
}

#[test]
fn a_frontier_that_was_never_the_logs_leads_to_no_signed_root() {
    // Of as many peaks as the size that it is told for, and of other leaves.
    let evidence = archived(5);
    assert_found(&evidence.verify(&evidence.lines[6..]), Verdict::Altered, "are not those that were signed");
    // Of another number of peaks, it is none.
    let evidence = archived(4);
    assert_found(&evidence.verify(&evidence.lines[6..]), Verdict::Incomplete, "entries 0 to 5 are missing");
}

/// The end of an export of the first entries of a log, with a checkpoint over all of them.
fn connected(evidence: &Evidence, size: usize) -> End {
    let leaves: Vec<Hash> = evidence.lines.iter().map(|line| canonical::leaf_hash(line)).collect();
    let mut tiles = TileSet::default();
    tiles.insert(TileId { level: 0, index: 0 }, Tile::new(leaves.clone()).unwrap());
    let plan = Plan::consistency(size as u64, leaves.len() as u64).unwrap();
    let head = Head {
        size: size as u64,
        root: leaves[..size].iter().copied().collect::<Frontier>().root().to_vec(),
        checkpoint: Some(note(&evidence.lines, leaves.len(), &[&evidence.key, &evidence.witness])),
        consistency: plan.prove(&tiles).unwrap(),
    };
    End { heads: BTreeMap::from([(INSTANCE.to_owned(), head)]), ..end_of(&evidence.lines[..size]) }
}

#[test]
fn an_export_between_two_checkpoints_is_valid_by_what_its_end_carries() {
    let mut evidence = evidence();
    evidence.notes.clear();
    for size in 1..=10 {
        let lines = &evidence.lines[..size];
        let report = evidence.verify_with(evidence.keys(), lines, Some(connected(&evidence, size)));
        assert_found(&report, Verdict::Valid, &format!("the first {size} entries are as they were signed"));
    }
    let (lines, end) = (&evidence.lines[..6], connected(&evidence, 6));
    let changed = |change: &dyn Fn(&mut Head)| {
        let mut end = end.clone();
        end.heads.values_mut().for_each(change);
        evidence.verify_with(evidence.keys(), lines, Some(end))
    };
    let told = "over 10 entries does not begin with the 6 of the export";
    assert_found(&changed(&|head| head.root[3] ^= 1), Verdict::Altered, told);
    assert_found(&changed(&|head| head.consistency[1][0] ^= 1), Verdict::Altered, told);
    assert_found(&changed(&|head| head.consistency.clear()), Verdict::Altered, told);
    assert_found(&changed(&|head| head.checkpoint = None), Verdict::NotEstablished, "no checkpoint by a pinned key");
    assert_found(
        &changed(&|head| head.checkpoint = Some(head.checkpoint.as_ref().unwrap().replacen("prod", "test", 1))),
        Verdict::Altered,
        "does not hold",
    );
    // Of the lines another one.
    let mut lines = lines.to_vec();
    lines[5] = lines[5].replacen("\"displayName\":\"Ada", "\"displayName\":\"Eve", 1);
    let end = End { sha256: end_of(&lines).sha256, ..end };
    let report = evidence.verify_with(evidence.keys(), &lines, Some(end));
    assert_found(&report, Verdict::Altered, "entries 0 to 5 are not those that were signed");
}

#[test]
fn what_was_signed_after_an_export_was_opened_is_not_missing_in_it() {
    let evidence = evidence();
    let end = End { frozen_at_s: Some(1_700_000_009), ..connected(&evidence, 8) };
    let report = evidence.verify_with(evidence.keys(), &evidence.lines[..8], Some(end.clone()));
    assert_found(&report, Verdict::Valid, "at 1700000010 s since 1970 it was signed with 10 entries");
    // Signed before, it is.
    let end = End { frozen_at_s: Some(1_700_000_011), ..end };
    let report = evidence.verify_with(evidence.keys(), &evidence.lines[..8], Some(end));
    assert_found(&report, Verdict::Incomplete, "entries 8 to 9 are missing at its end");
}

#[test]
fn a_log_that_was_silent_is_held_to_the_first_of_its_cosignatures() {
    let mut evidence = evidence();
    let end = End { frozen_at_s: Some(1_700_000_009), ..connected(&evidence, 8) };
    // All ten were there before the export says that it was opened, and were cosigned again afterwards.
    for at_s in [1_700_000_005, 1_700_000_700] {
        let text = evidence.notes[2].parse::<Note>().unwrap().text().to_owned();
        let signatures = [&evidence.key, &evidence.witness].map(|key| key.sign(&text, at_s)).to_vec();
        evidence.notes.push(Note::new(text, signatures).unwrap().to_string());
    }
    let report = evidence.verify_with(evidence.keys(), &evidence.lines[..8], Some(end));
    assert_found(&report, Verdict::Incomplete, "entries 8 to 9 are missing at its end");
}

#[test]
fn entries_that_were_back_dated_are_named() {
    let mut evidence = evidence();
    for (at, us) in [(6, -1), (9, 0)] {
        let mut back = entry(at);
        back.recorded_at_us = entry(0).recorded_at_us + us;
        evidence.lines[at as usize] = canonical::to_string(&back);
    }
    evidence.notes = [4, 10].map(|size| note(&evidence.lines, size, &[&evidence.key])).to_vec();
    let report = evidence.verify(&evidence.lines);
    assert_found(&report, Verdict::Altered, "2 entries say that they were recorded before the one before them");
    assert_found(&report, Verdict::Altered, "back-dated: 6, 9");
    // They are as they were signed all the same.
    assert_found(&report, Verdict::Altered, "the first 10 entries are as they were signed");
}

#[test]
fn entries_that_came_long_after_they_occurred_are_counted() {
    let mut evidence = evidence();
    for (at, hours) in [(3, 30), (4, 24), (8, 1_000)] {
        let mut late = entry(at);
        late.event.occurred_at_us = late.recorded_at_us - hours * 3_600_000_000;
        evidence.lines[at as usize] = canonical::to_string(&late);
    }
    evidence.notes = vec![note(&evidence.lines, 10, &[&evidence.key])];
    let report = evidence.verify(&evidence.lines);
    assert_found(&report, Verdict::Valid, "2 entries were recorded more than a day after they occurred");
    assert_found(&report, Verdict::Valid, "the longest, 1000 hours, is entry 8");
}

#[test]
fn a_key_is_believed_for_its_sizes() {
    let evidence = evidence();
    let report = |sizes: &str| {
        let key: PinnedKey = format!("{}{sizes}", evidence.key.verifier()).parse().unwrap();
        let mut verifier = Verifier::new([key]).unwrap();
        evidence.notes.iter().for_each(|note| verifier.checkpoint(note));
        verifier.export(evidence.lines.iter().map(|line| format!("{line}\n")).collect::<String>().as_bytes()).unwrap();
        verifier.finish()
    };
    assert_found(&report(""), Verdict::Valid, "the first 10 entries");
    assert_found(&report("@-10"), Verdict::Valid, "the first 10 entries");
    assert_found(&report("@prod:4-10"), Verdict::Valid, "keys trusted: localhost/audit+");
    assert_found(&report("@prod:4-10"), Verdict::Valid, "@prod:4-10");
    // A key that was replaced signs nothing later, and a new one nothing before.
    assert_found(&report("@-9"), Verdict::Altered, "over 10 entries, and the key that has signed it");
    assert_found(&report("@-9"), Verdict::Altered, "is good for 0-9");
    assert_found(&report("@8-"), Verdict::Altered, "over 7 entries, and the key that has signed it");
    assert_found(&report("@other:1-20"), Verdict::NotEstablished, "3 checkpoints by no key that is pinned");
}

#[test]
fn while_a_key_is_replaced_both_are_believed() {
    let mut evidence = evidence();
    let new = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap().0;
    let by = |size, keys: &[&SigningKey]| note(&evidence.lines, size, keys);
    let (old, both, alone) = (by(4, &[&evidence.key]), by(7, &[&evidence.key, &new]), by(10, &[&new]));
    let (late, early) = (by(10, &[&evidence.key]), by(4, &[&new]));
    let pins = [format!("{}@prod:4-7", evidence.key.verifier()), format!("{}@prod:7-", new.verifier())];
    let mut report = |notes: &[&String]| {
        evidence.notes = notes.iter().map(|note| (*note).clone()).collect();
        let mut verifier = Verifier::new(pins.iter().map(|pin| pin.parse::<PinnedKey>().unwrap())).unwrap();
        evidence.notes.iter().for_each(|note| verifier.checkpoint(note));
        let export: String = evidence.lines.iter().map(|line| format!("{line}\n")).collect();
        verifier.export(export.as_bytes()).unwrap();
        verifier.finish()
    };
    assert_found(&report(&[&old, &both, &alone]), Verdict::Valid, "the first 10 entries");
    assert_found(&report(&[&old, &both, &alone, &late]), Verdict::Altered, "is good for 4-7");
    assert_found(&report(&[&old, &both, &alone, &early]), Verdict::Altered, "is good for 7-");
}

#[test]
fn bytes_that_are_no_lines_are_altered_and_told_with_their_line() {
    let evidence = evidence();
    let verify = |bytes: &[u8]| {
        let mut verifier = Verifier::new(evidence.keys()).unwrap();
        evidence.notes.iter().for_each(|note| verifier.checkpoint(note));
        verifier.export(bytes).unwrap();
        verifier.finish()
    };
    let all: Vec<u8> = evidence.lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
    let mut invalid = all.clone();
    let at = evidence.lines[..3].iter().map(|line| line.len() + 1).sum::<usize>() + 30;
    invalid[at] = 0xff;
    assert_found(&verify(&invalid), Verdict::Altered, "line 4 is not UTF-8");
    let long = [&vec![b'x'; 3 * MAX_LINE_BYTES][..], b"\n", &all].concat();
    assert_found(&verify(&long), Verdict::Altered, "line 1 is longer than 1048576 bytes");
    assert_found(&verify(&long), Verdict::Altered, "the first 10 entries are as they were signed");
    // The end's hash is over them too.
    let mut verifier = Verifier::new(evidence.keys()).unwrap();
    let mut end = end_of(&evidence.lines);
    (end.entries, end.sha256) = (11, Sha256::digest(&long).to_vec());
    verifier.end(end.clone());
    verifier.export(long.as_slice()).unwrap();
    assert!(!verifier.finish().to_string().contains("another SHA-256"));
    // A last line without its end is not the export that was made.
    let mut verifier = Verifier::new(evidence.keys()).unwrap();
    verifier.end(end_of(&evidence.lines));
    verifier.export(&all[..all.len() - 1]).unwrap();
    assert_found(&verifier.finish(), Verdict::Altered, "another SHA-256");
}

#[test]
fn what_is_held_of_a_log_does_not_grow_with_it() {
    let mut verifier = Verifier::new([evidence().key.verifier().clone()]).unwrap();
    for sequence in 0..5_000 {
        let entry = entry(sequence);
        verifier.entry(&canonical::to_string(&entry), &entry);
    }
    let log = &verifier.logs[INSTANCE];
    assert!(log.forest.len() <= 13, "{}", log.forest.len());
}

#[test]
fn where_an_export_begins_is_known_after_however_many_segments() {
    let mut log = Log::default();
    for end in 1..=5_000 {
        let mut tells = entry(5_000 + end);
        tells.event.action = crate::retention::ARCHIVED.into();
        tells.recorded_by = "audit-service".into();
        // One leaf is of as many peaks as one bit.
        let peaks = vec!["00".repeat(32); end.count_ones() as usize];
        tells.event.details_json =
            serde_json::json!({ "end_sequence": end.to_string(), "frontier": peaks }).to_string();
        let first = entry(5_000);
        log.take(&first, Subtree::leaf([0; 32], first.recorded_at_us));
        log.take(&tells, Subtree::leaf([0; 32], tells.recorded_at_us));
    }
    let mut report = Report::default();
    assert_eq!(log.begin(INSTANCE, &mut report).size(), 5_000, "{report}");
    assert!(log.told.len() <= 1_024, "{}", log.told.len());
}

/// A segment of the archive with these entries, under the newest note.
fn segment(evidence: &Evidence, first: usize, end: usize) -> (Manifest, Vec<u8>) {
    let mut builder = SegmentBuilder::new().unwrap();
    for line in &evidence.lines[first..end] {
        builder.push(line, &canonical::parse(line).unwrap()).unwrap();
    }
    let built = builder.finish().unwrap();
    let leaves: Vec<Hash> = evidence.lines.iter().map(|line| canonical::leaf_hash(line)).collect();
    let size = leaves.len() as u64;
    let tiles = needed_tiles(first as u64, end as u64, size);
    let proof = Proof {
        tree_size: size,
        root: leaves.iter().copied().collect::<Frontier>().root(),
        frontier: leaves[..end].iter().copied().collect(),
        tiles: tiles.into_iter().map(|id| (id, Tile::new(leaves.clone()).unwrap())).collect(),
        checkpoint: evidence.notes.last().cloned(),
    };
    let manifest = Manifest::new("localhost/audit", INSTANCE, first as u64, "data".into(), &built, proof);
    (manifest, built.data)
}

#[test]
fn segments_alone_are_held_to_what_was_kept() {
    let mut evidence = evidence();
    let keys = evidence.keys();
    let verify = |notes: &[String], segments: &[&(Manifest, Vec<u8>)]| {
        let mut verifier = Verifier::new(keys.clone()).unwrap();
        notes.iter().for_each(|note| verifier.checkpoint(note));
        segments.iter().for_each(|(manifest, _)| verifier.expect_segment(manifest));
        segments.iter().for_each(|(manifest, data)| verifier.segment(manifest, data.clone()));
        verifier.finish()
    };
    let kept = evidence.notes.clone();
    let [first, second] = [(0, 6), (6, 9)].map(|(first, end)| segment(&evidence, first, end));
    assert_found(&verify(&kept, &[&first, &second]), Verdict::Valid, "9 entries of 2 segments of the archive");
    assert_found(&verify(&kept, &[&second]), Verdict::Incomplete, "entries 0 to 5 are missing");
    // Who has the key writes another history, and signs all of it.
    evidence.lines[5] = evidence.lines[5].replacen("\"displayName\":\"Ada", "\"displayName\":\"Eve", 1);
    evidence.notes = vec![note(&evidence.lines, 10, &[&evidence.key, &evidence.witness])];
    let others = [(0, 6), (6, 9)].map(|(first, end)| segment(&evidence, first, end));
    assert_found(&verify(&[], &[&others[0], &others[1]]), Verdict::Valid, "9 entries of 2 segments");
    assert_found(&verify(&kept[..2], &[&others[0], &others[1]]), Verdict::Altered, "entries 4 to 6 are not those");
    // Two that are not of one history.
    assert_found(&verify(&[], &[&others[0], &second]), Verdict::Altered, "two histories");
}

/// A line of proofs for each of these entries, in the tree over all of them.
fn proofs(lines: &[String], sequences: &[u64]) -> Vec<String> {
    let leaves: Vec<Hash> = lines.iter().map(|line| canonical::leaf_hash(line)).collect();
    let mut tiles = TileSet::default();
    tiles.insert(TileId { level: 0, index: 0 }, Tile::new(leaves.clone()).unwrap());
    let proof = |sequence: &u64| {
        let plan = Plan::inclusion(*sequence, leaves.len() as u64).unwrap();
        let hashes: Vec<String> = plan.prove(&tiles).unwrap().iter().map(|hash| BASE64.encode(hash)).collect();
        serde_json::json!({ "instanceId": INSTANCE, "sequence": sequence.to_string(), "hashes": hashes }).to_string()
    };
    sequences.iter().map(proof).collect()
}

#[test]
fn a_filtered_export_is_verified_line_by_line() {
    let evidence = evidence();
    let of = |sequences: &[u64]| -> Vec<String> {
        sequences.iter().map(|sequence| evidence.lines[*sequence as usize].clone()).collect()
    };
    let verify = |keys: Vec<VerifierKey>, lines: &[String], proofs: &[String], filtered: bool| {
        let text = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        let mut verifier = Verifier::new(keys).unwrap();
        let end = End { entries: lines.len() as u64, sha256: end_of(lines).sha256, ..connected(&evidence, 10) };
        verifier.end(end);
        verifier.proven_export(text(lines).as_bytes(), text(proofs).as_bytes(), filtered).unwrap();
        verifier.finish()
    };
    let some = [1, 4, 8];
    let report = verify(evidence.keys(), &of(&some), &proofs(&evidence.lines, &some), true);
    assert_found(&report, Verdict::Valid, "3 of its 10 entries are in this export, each as it was signed");
    assert_found(&report, Verdict::Valid, "cosigned at 1700000010 s");
    // A note that was kept says that the log was longer.
    let mut verifier = Verifier::new(evidence.keys()).unwrap();
    evidence.notes.iter().for_each(|note| verifier.checkpoint(note));
    let (one, sidecar) = (of(&[1]), proofs(&evidence.lines[..7], &[1]));
    let end = End { frozen_at_s: Some(1_700_000_011), ..connected(&evidence, 7) };
    verifier.end(End { entries: 1, sha256: end_of(&one).sha256, ..end });
    verifier.proven_export(format!("{}\n", one[0]).as_bytes(), format!("{}\n", sidecar[0]).as_bytes(), true).unwrap();
    let report = verifier.finish();
    assert_found(&report, Verdict::Incomplete, "entries 7 to 9 are missing at its end");
    assert_found(&report, Verdict::Incomplete, "2 checkpoints over other than its 7 entries were not compared");
    // Without the filter's word what is not there is missing.
    let report = verify(evidence.keys(), &of(&some), &proofs(&evidence.lines, &some), false);
    assert_found(&report, Verdict::Incomplete, "entries 0 to 0 are missing");
    // Each that was changed is named.
    let mut changed = of(&some);
    changed[1] = changed[1].replacen("\"displayName\":\"Ada", "\"displayName\":\"Eve", 1);
    let report = verify(evidence.keys(), &changed, &proofs(&evidence.lines, &some), true);
    assert_found(&report, Verdict::Altered, "entry 4 (line 2) is not the one that was signed");
    assert_found(&report, Verdict::Altered, "2 of its 10 entries");
    let all: Vec<u64> = (0..10).collect();
    let mut whole = of(&all);
    whole[6] = whole[6].replacen("\"displayName\":\"Ada", "\"displayName\":\"Eve", 1);
    let report = verify(evidence.keys(), &whole, &proofs(&evidence.lines, &all), false);
    assert_found(&report, Verdict::Altered, "entry 6 (line 7) is not the one that was signed");
    // Proofs of others, or none.
    let report = verify(evidence.keys(), &of(&[1, 8, 4]), &proofs(&evidence.lines, &some), true);
    assert_found(&report, Verdict::Altered, "entry 8 (line 2) has the proof of another entry");
    let report = verify(evidence.keys(), &of(&some), &proofs(&evidence.lines, &some)[..2], true);
    assert_found(&report, Verdict::NotEstablished, "entry 8 (line 3) has no proof");
    let report = verify(Vec::new(), &of(&some), &proofs(&evidence.lines, &some), true);
    assert_found(&report, Verdict::NotEstablished, "whose head no checkpoint by a pinned key is over");
}
