//! Known answers, the definitions of RFC 6962 word for word, and another implementation.

use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;

use super::*;

fn unhex(text: &str) -> Hash {
    let bytes: Vec<u8> =
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Leaves of the test tree that implementations of Certificate Transparency share.
const LEAVES: [&[u8]; 8] = [
    b"",
    b"\x00",
    b"\x10",
    b"\x20\x21",
    b"\x30\x31",
    b"\x40\x41\x42\x43",
    b"\x50\x51\x52\x53\x54\x55\x56\x57",
    b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
];

/// Its roots, from one leaf to eight.
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

/// Leaf, size and proof.
const INCLUSIONS: [(u64, u64, &[&str]); 6] = [
    (0, 1, &[]),
    (
        0,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        &[
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        &[
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
    (4, 5, &["d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
];

/// The older size, the newer one, and the proof.
const CONSISTENCIES: [(u64, u64, &[&str]); 5] = [
    (1, 1, &[]),
    (
        1,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        &[
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        &[
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
    (
        6,
        7,
        &[
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
];

/// `k` of RFC 6962: the largest power of two smaller than `n`.
fn k(n: usize) -> usize {
    let mut k = 1;
    while k * 2 < n {
        k *= 2;
    }
    k
}

/// `MTH`.
fn mth(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Sha256::digest(b"").into(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(k(leaves.len()));
            Sha256::digest([&[1_u8][..], &mth(left), &mth(right)].concat()).into()
        }
    }
}

/// `PATH`.
fn path(m: usize, leaves: &[Hash]) -> Vec<Hash> {
    if leaves.len() == 1 {
        return Vec::new();
    }
    let k = k(leaves.len());
    let (left, right) = leaves.split_at(k);
    if m < k { [path(m, left), vec![mth(right)]].concat() } else { [path(m - k, right), vec![mth(left)]].concat() }
}

/// `PROOF`, and `SUBPROOF` with its flag.
fn subproof(m: usize, leaves: &[Hash], whole: bool) -> Vec<Hash> {
    if m == leaves.len() {
        return if whole { Vec::new() } else { vec![mth(leaves)] };
    }
    let k = k(leaves.len());
    let (left, right) = leaves.split_at(k);
    if m <= k {
        [subproof(m, left, whole), vec![mth(right)]].concat()
    } else {
        [subproof(m - k, right, false), vec![mth(left)]].concat()
    }
}

fn leaf(at: usize) -> Hash {
    leaf_hash(format!("leaf {at}").as_bytes())
}

fn leaves(count: usize) -> Vec<Hash> {
    (0..count).map(leaf).collect()
}

/// All tiles of a tree, by their definition in tlog-tiles.
fn tiles(leaves: &[Hash]) -> TileSet {
    let size = leaves.len() as u64;
    let mut tiles = TileSet::default();
    for level in TileId::levels(size) {
        let step = 256_usize.pow(u32::from(level));
        let hashes: Vec<Hash> = leaves.chunks_exact(step).map(mth).collect();
        for (index, hashes) in (0..).zip(hashes.chunks(256)) {
            let id = TileId { level, index };
            assert_eq!(id.width(size), hashes.len() as u64);
            tiles.insert(id, Tile::new(hashes.to_vec()).unwrap());
        }
    }
    tiles
}

fn included(index: usize, size: usize, tiles: &TileSet) -> Vec<Hash> {
    Plan::inclusion(index as u64, size as u64).unwrap().prove(tiles).unwrap()
}

fn consistent(old: usize, size: usize, tiles: &TileSet) -> Vec<Hash> {
    Plan::consistency(old as u64, size as u64).unwrap().prove(tiles).unwrap()
}

#[test]
fn known_trees_and_proofs() {
    assert_eq!(empty_root(), unhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"));
    let hashes: Vec<Hash> = LEAVES.iter().map(|leaf| leaf_hash(leaf)).collect();
    let mut frontier = Frontier::default();
    for (leaf, root) in hashes.iter().zip(ROOTS) {
        frontier.push(*leaf);
        assert_eq!(frontier.root(), unhex(root));
    }
    let root = |size: u64| unhex(ROOTS[size as usize - 1]);
    for (index, size, proof) in INCLUSIONS {
        let proof: Vec<Hash> = proof.iter().map(|hash| unhex(hash)).collect();
        assert_eq!(included(index as usize, size as usize, &tiles(&hashes[..size as usize])), proof);
        verify_inclusion(index, size, &hashes[index as usize], &proof, &root(size)).unwrap();
    }
    for (old, size, proof) in CONSISTENCIES {
        let proof: Vec<Hash> = proof.iter().map(|hash| unhex(hash)).collect();
        assert_eq!(consistent(old as usize, size as usize, &tiles(&hashes[..size as usize])), proof);
        verify_consistency(old, size, &root(old), &root(size), &proof).unwrap();
    }
}

/// Calls `check` with every single bit of the hashes changed, each by itself; built for a short run with every 13th, others
/// for each `turn`.
fn with_each_bit_changed(turn: usize, hashes: &mut [Hash], mut check: impl FnMut(&[Hash])) {
    let (first, step) = if option_env!("FULL").is_some() { (0, 1) } else { (turn % 13, 13) };
    for at in (first..hashes.len() * 256).step_by(step) {
        let (hash, byte, bit) = (at / 256, at / 8 % 32, at % 8);
        hashes[hash][byte] ^= 1 << bit;
        check(hashes);
        hashes[hash][byte] ^= 1 << bit;
    }
}

#[test]
fn every_inclusion_proof_up_to_64_holds_and_no_changed_bit_passes() {
    for size in 1..=64 {
        let leaves = leaves(size);
        let (tiles, root) = (tiles(&leaves), mth(&leaves));
        for (index, leaf) in leaves.iter().enumerate() {
            let proof = included(index, size, &tiles);
            assert_eq!(proof, path(index, &leaves));
            let verify = |index: usize, leaf: &Hash, proof: &[Hash], root: &Hash| {
                verify_inclusion(index as u64, size as u64, leaf, proof, root)
            };
            assert_eq!(verify(index, leaf, &proof, &root), Ok(()));
            let mut all = [vec![*leaf, root], proof.clone()].concat();
            with_each_bit_changed(size + index, &mut all, |all| {
                assert_eq!(verify(index, &all[0], &all[2..], &all[1]), Err(NotProven::Root));
            });
            for other in (0..=size).filter(|other| *other != index) {
                assert!(verify(other, leaf, &proof, &root).is_err(), "{other} for {index} of {size}");
            }
            for short in 0..proof.len() {
                assert_eq!(verify(index, leaf, &proof[..short], &root), Err(NotProven::Length));
            }
            assert_eq!(verify(index, leaf, &[&proof[..], &[root]].concat(), &root), Err(NotProven::Length));
        }
    }
}

#[test]
fn every_consistency_proof_up_to_64_holds_and_no_changed_bit_passes() {
    let all_leaves = leaves(64);
    for size in 0..=64 {
        let leaves = &all_leaves[..size];
        let (tiles, root) = (tiles(leaves), mth(leaves));
        for old in 0..=size {
            let old_root = mth(&leaves[..old]);
            let proof = consistent(old, size, &tiles);
            if old > 0 {
                assert_eq!(proof, subproof(old, leaves, true));
            }
            let verify = |old: usize, old_root: &Hash, root: &Hash, proof: &[Hash]| {
                verify_consistency(old as u64, size as u64, old_root, root, proof)
            };
            assert_eq!(verify(old, &old_root, &root, &proof), Ok(()));
            let mut all = [vec![old_root, root], proof.clone()].concat();
            // Any newer root is consistent with nothing; only that there was nothing is checked.
            let known = if old == 0 && size > 0 { 1 } else { all.len() };
            with_each_bit_changed(size + old, &mut all[..known], |all| {
                let root = all.get(1).unwrap_or(&root);
                assert_eq!(verify(old, &all[0], root, all.get(2..).unwrap_or(&[])), Err(NotProven::Root));
            });
            for other in (1..=64).filter(|other| *other != old && old > 0) {
                assert!(verify(other, &old_root, &root, &proof).is_err(), "{other} for {old} of {size}");
            }
            for short in 0..proof.len() {
                assert!(verify(old, &old_root, &root, &proof[..short]).is_err());
            }
            assert_eq!(verify(old, &old_root, &root, &[&proof[..], &[root]].concat()), Err(NotProven::Length));
        }
    }
}

#[test]
fn another_implementation_makes_the_same_proofs() {
    let mut tree: MemoryBackedTree<Sha256, Vec<u8>> = MemoryBackedTree::new();
    let mut leaves = Vec::new();
    let mut frontier = Frontier::default();
    for at in 0..600 {
        let entry = format!("leaf {at}").into_bytes();
        leaves.push(leaf_hash(&entry));
        frontier.push(leaf_hash(&entry));
        tree.push(entry);
        let size = at + 1;
        assert_eq!(frontier.root(), <Hash>::from(*tree.root().as_bytes()));
        // All small ones; of the large ones those with bits all over the place.
        if size > 64 && size % 37 != 0 {
            continue;
        }
        let tiles = tiles(&leaves);
        for index in (0..size).filter(|index| size <= 64 || index % 5 == 0) {
            assert_eq!(included(index, size, &tiles).concat(), tree.prove_inclusion(index).as_bytes());
            if index > 0 {
                let proof = tree.prove_consistency(size - index);
                assert_eq!(consistent(index, size, &tiles).concat(), proof.as_bytes());
            }
        }
    }
}

/// A tree with a full tile at level 1, and a hash at level 2.
#[test]
fn proofs_go_through_all_levels_of_tiles() {
    let leaves = leaves(66_000);
    let (tiles, root) = (tiles(&leaves), mth(&leaves));
    let frontier: Frontier = leaves.iter().copied().collect();
    assert_eq!(frontier.root(), root);
    assert_eq!(Plan::root(66_000).prove(&tiles).unwrap(), [root]);
    for index in [0, 255, 256, 65_535, 65_536, 65_800, 65_999] {
        let plan = Plan::inclusion(index, 66_000).unwrap();
        assert!(plan.tiles().len() <= 5, "{:?}", plan.tiles());
        let proof = plan.prove(&tiles).unwrap();
        verify_inclusion(index, 66_000, &leaves[index as usize], &proof, &root).unwrap();
        let proof = consistent(index as usize + 1, 66_000, &tiles);
        verify_consistency(index + 1, 66_000, &mth(&leaves[..=index as usize]), &root, &proof).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn proofs_up_to_2000_hold_and_changed_ones_do_not(size in 1_usize..=2_000, at: prop::sample::Index, bit: prop::sample::Index) {
        let leaves = leaves(size);
        let (tiles, root) = (tiles(&leaves), mth(&leaves));
        let index = at.index(size);

        let mut proof = included(index, size, &tiles);
        prop_assert_eq!(verify_inclusion(index as u64, size as u64, &leaves[index], &proof, &root), Ok(()));
        if !proof.is_empty() {
            let bit = bit.index(proof.len() * 256);
            proof[bit / 256][bit / 8 % 32] ^= 1 << (bit % 8);
            let changed = verify_inclusion(index as u64, size as u64, &leaves[index], &proof, &root);
            prop_assert_eq!(changed, Err(NotProven::Root));
        }

        let (old, old_root) = (index + 1, mth(&leaves[..=index]));
        let mut proof = consistent(old, size, &tiles);
        prop_assert_eq!(verify_consistency(old as u64, size as u64, &old_root, &root, &proof), Ok(()));
        if !proof.is_empty() {
            let bit = bit.index(proof.len() * 256);
            proof[bit / 256][bit / 8 % 32] ^= 1 << (bit % 8);
            let changed = verify_consistency(old as u64, size as u64, &old_root, &root, &proof);
            prop_assert_eq!(changed, Err(NotProven::Root));
        }
    }

    #[test]
    fn no_proof_panics_or_passes_by_itself(index: u64, size: u64, count in 0_usize..70, hash: Hash) {
        let proof = vec![hash; count];
        let root = node_hash(&hash, &hash);
        prop_assert!(verify_inclusion(index, size, &hash, &proof, &root).is_err() || count <= 1);
        prop_assert!(verify_consistency(index, size, &hash, &root, &proof).is_err() || count <= 1);
        for size in [1, u64::MAX] {
            let _ = Plan::inclusion(index, size).map(|plan| plan.tiles());
            let _ = Plan::consistency(index, size).map(|plan| plan.tiles());
        }
    }

    #[test]
    fn a_frontier_is_read_back_and_not_with_another_size(size in 0_usize..=300) {
        let frontier: Frontier = leaves(size).into_iter().collect();
        prop_assert_eq!(Frontier::from_bytes(size as u64, &frontier.to_bytes()), Some(frontier.clone()));
        prop_assert_eq!(Frontier::from_bytes(2 * size as u64 + 1, &frontier.to_bytes()), None);
        prop_assert_eq!(Frontier::from_bytes(size as u64, &[&frontier.to_bytes()[..], &[0]].concat()), None);
    }

    #[test]
    fn a_path_is_read_back(level in 0_u8..8, index: u64, partial in prop::option::of(1_u8..)) {
        let path = TilePath { id: TileId { level, index }, partial };
        prop_assert_eq!(path.to_string().parse(), Ok(path));
    }
}

#[test]
fn paths_are_those_of_the_specification() {
    let path = |level, index, partial| TilePath { id: TileId { level, index }, partial };
    for (text, path) in [
        ("tile/0/x001/x234/067", path(0, 1_234_067, None)),
        ("tile/0/000", path(0, 0, None)),
        ("tile/3/x001/000", path(3, 1_000, None)),
        ("tile/1/000.p/17", path(1, 0, Some(17))),
        ("tile/7/999.p/255", path(7, 999, Some(255))),
    ] {
        assert_eq!(path.to_string(), text);
        assert_eq!(text.parse(), Ok(path));
    }
    for wrong in [
        "",
        "tile/0",
        "tile/0/",
        "tile/00/000",
        "tile/8/000",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/000",
        "tile/0/001/000",
        "tile/0/x001",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/017",
        "tile/0/000.p/",
        "tile/0/+01",
        "tile/entries/000",
        "/tile/0/000",
        "tile/0/x018/x446/x744/x073/x709/x551/616",
    ] {
        assert_eq!(wrong.parse::<TilePath>(), Err(WrongPath), "{wrong}");
    }
}

#[test]
fn widths_are_those_of_the_specification() {
    let widths = |size: u64| {
        let level = |level| {
            let hashes = TileId::hashes(level, size);
            (hashes / WIDTH, TileId { level, index: hashes / WIDTH }.width(size))
        };
        TileId::levels(size).map(level).collect::<Vec<_>>()
    };
    assert_eq!(widths(70_000), [(273, 112), (1, 17), (0, 1)]);
    assert_eq!(widths(256), [(1, 0), (0, 1)]);
    assert_eq!(widths(0), []);
    assert_eq!(TileId { level: 0, index: 0 }.width(70_000), 256);
    assert_eq!(TileId { level: 0, index: 274 }.width(70_000), 0);
    assert_eq!(TileId { level: 0, index: u64::MAX }.width(u64::MAX), 0);
    assert_eq!(TileId::levels(u64::MAX), 0..8);
    assert_eq!(TileId::completed(0, 200, 800), 0..3);
    assert_eq!(TileId::completed(1, 65_535, 65_536), 0..1);
    assert_eq!(TileId { level: 0, index: 2 }.places(), 512..768);
}

#[test]
fn a_frontier_tells_which_leaf_makes_a_tile_full() {
    let leaves = leaves(1_100);
    let mut frontier = Frontier::default();
    for (at, leaf) in leaves.iter().enumerate() {
        let full = (at % 256 == 255).then(|| mth(&leaves[at - 255..=at]));
        assert_eq!(frontier.push(*leaf), full);
        let partial: Frontier = leaves[at / 256 * 256..=at].iter().copied().collect();
        assert!(frontier.ends_with(&partial) || at % 256 == 255);
        let other: Frontier = leaves[at / 256 * 256 + 1..=at].iter().copied().collect();
        assert!(!frontier.ends_with(&other) || other.size() == 0 || at % 256 == 255);
    }
}

#[test]
fn a_tile_has_1_to_256_hashes() {
    let full = Tile::new(leaves(256)).unwrap();
    assert!(full.is_full() && full.root() == mth(&leaves(256)));
    assert_eq!(Tile::from_bytes(&full.to_bytes()), Ok(full.clone()));
    assert_eq!(full.to_bytes().len(), 8_192);
    assert!(!Tile::new(leaves(255)).unwrap().is_full());
    for wrong in [0, 31, 33, 8_191, 8_193, 8_224] {
        let error = Tile::from_bytes(&vec![0; wrong]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("a tile has {wrong} bytes")), "{error}");
    }
}

#[test]
fn what_is_not_there_is_not_proven() {
    let tiles = tiles(&leaves(300));
    assert_eq!(Plan::inclusion(300, 300), Err(Unprovable::Index { index: 300, size: 300 }));
    assert_eq!(Plan::consistency(301, 300), Err(Unprovable::Sizes { old_size: 301, size: 300 }));
    let beyond = Plan::inclusion(0, 400).unwrap();
    assert_eq!(beyond.prove(&tiles), Err(Unprovable::NoTile(TileId { level: 0, index: 1 })));
    assert_eq!(Plan::root(0).prove(&tiles), Ok(vec![]));
}
