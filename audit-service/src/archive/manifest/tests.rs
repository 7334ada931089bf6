use proptest::prelude::*;

use super::super::segment::SegmentBuilder;
use super::*;
use crate::canonical::fixtures;
use crate::event::Entry;

/// Lines and their entries.
type Log = Vec<(String, Entry)>;

/// A log of so many entries.
fn log(entries: u64) -> Log {
    let entry = |sequence| Entry { sequence, ..fixtures::full() };
    (0..entries).map(entry).map(|entry| (canonical::to_string(&entry), entry)).collect()
}

/// The manifest of a part of it, in its whole tree, and its object.
fn segment(log: &[(String, Entry)], first: u64, end: u64) -> (Manifest, Vec<u8>) {
    let size = log.len() as u64;
    let leaves: Vec<Hash> = log.iter().map(|(line, _)| canonical::leaf_hash(line)).collect();
    let tile = |id: TileId| {
        let places = id.places();
        let hashes = match id.level {
            0 => leaves[places.start as usize..(places.end.min(size)) as usize].to_vec(),
            _ => (places.start..places.start + id.width(size))
                .map(|below| Tile::new(leaves[(below * WIDTH) as usize..][..WIDTH as usize].to_vec()).unwrap().root())
                .collect(),
        };
        (id, Tile::new(hashes).unwrap())
    };
    let mut builder = SegmentBuilder::new().unwrap();
    for (line, entry) in &log[first as usize..end as usize] {
        builder.push(line, entry).unwrap();
    }
    let built = builder.finish().unwrap();
    let proof = Proof {
        tree_size: size,
        root: leaves.iter().copied().collect::<Frontier>().root(),
        frontier: leaves[..end as usize].iter().copied().collect(),
        tiles: needed_tiles(first, end, size).into_iter().map(tile).collect(),
        checkpoint: None,
    };
    let instance = &log[0].1.event.instance_id;
    (Manifest::new("o", instance, first, "data".into(), &built, proof), built.data)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_segment_of_any_log_is_verified_without_it(size in 1_u64..1_200, a in 0_u64..1_200, b in 0_u64..1_200) {
        let (a, b) = (a % size, b % size);
        let (first, end) = (a.min(b), a.max(b) + 1);
        let log = log(size);
        let (manifest, data) = segment(&log, first, end);
        let read = Manifest::parse(&manifest.to_bytes().unwrap()).unwrap();
        prop_assert_eq!(&read, &manifest);
        let mut lines = Vec::new();
        read.verify(data, |line, _| lines.push(line.to_owned())).unwrap();
        let expected: Vec<String> = log[first as usize..end as usize].iter().map(|(line, _)| line.clone()).collect();
        prop_assert_eq!(lines, expected);
    }
}

#[test]
fn what_is_changed_moved_or_left_out_is_found() {
    let log = log(700);
    let (manifest, data) = segment(&log, 200, 600);
    manifest.verify(data.clone(), |_, _| ()).unwrap();
    // Whoever changes lines changes the hashes of the manifest as well, but not the tree.
    let forged = |change: &dyn Fn(&mut Log)| {
        let mut lines = log.clone();
        change(&mut lines);
        let (other, data) = segment(&lines, 200, 600);
        let manifest = Manifest { data: other.data, lines_sha256: other.lines_sha256, ..manifest.clone() };
        manifest.verify(data, |_, _| ()).unwrap_err().to_string()
    };
    let rewrite = |lines: &mut Log, at: usize| {
        lines[at].1.event.reason = "nothing to see".into();
        lines[at].0 = canonical::to_string(&lines[at].1);
    };
    for at in [200, 255, 256, 400, 511, 512, 599] {
        let why = forged(&|lines| rewrite(lines, at));
        assert!(why.contains("not") && why.contains("of the log"), "{at}: {why}");
    }
    let why = forged(&|lines| lines.swap(300, 301));
    assert!(why.contains("where entry 300 should be"), "{why}");
    for (other, word) in [
        (Manifest { tree_size: 701, ..manifest.clone() }, ""),
        (Manifest { root: BASE64.encode([7; 32]), ..manifest.clone() }, "not those of the log"),
        (Manifest { frontier: BASE64.encode([7; 32 * 4]), ..manifest.clone() }, "frontier"),
        (Manifest { end_sequence: 599, ..manifest.clone() }, "not those that it counted"),
        (Manifest { tiles: manifest.tiles[1..].to_vec(), ..manifest.clone() }, "tile"),
        (Manifest { checkpoint: Some("signed by me".into()), ..manifest.clone() }, "no checkpoint"),
    ] {
        let why = other.verify(data.clone(), |_, _| ()).unwrap_err().to_string();
        assert!(why.contains(word), "{why}");
    }
    assert!(manifest.verify(data[1..].to_vec(), |_, _| ()).is_err());
}
