use proptest::prelude::*;

use super::*;

const MAX_BODY: usize = 300;

fn header(salt: u64) -> Header {
    Header { number: 3, salt, boot: 4, epoch: 5, producer: "p".into() }
}

/// A segment with these events, numbered from 10, and room behind them.
fn segment(salt: u64, bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = header(salt).encode();
    let mut places = Vec::new();
    for (sequence, body) in (10_u64..).zip(bodies) {
        places.push(bytes.len());
        let len = body.len() as u32;
        bytes.extend(len.to_le_bytes());
        bytes.extend(frame_crc(body_crc(seed(salt), body), len, sequence).to_le_bytes());
        bytes.extend(sequence.to_le_bytes());
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes.resize(bytes.len() + 512, 0);
    (bytes, places)
}

fn bodies() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..MAX_BODY), 1..30)
}

fn events(bytes: &[u8], salt: u64) -> Vec<(u64, Vec<u8>)> {
    Frames::new(bytes, salt, None, MAX_BODY)
        .filter_map(|item| match item {
            Item::Event { sequence, body } => Some((sequence, body.to_vec())),
            Item::Gap { .. } => None,
        })
        .collect()
}

proptest! {
    #[test]
    fn what_was_written_reads_back(salt: u64, bodies in bodies()) {
        let (bytes, _) = segment(salt, &bodies);
        prop_assert_eq!(Header::decode(&bytes), Some(header(salt)));
        prop_assert_eq!(Seal::decode(&bytes, salt), None);
        let want: Vec<_> = (10..).zip(bodies).collect();
        prop_assert_eq!(events(&bytes, salt), want);
        // Of another file's salt nothing is a frame.
        prop_assert_eq!(events(&bytes, !salt), []);
    }

    #[test]
    fn a_damaged_event_is_a_gap_and_the_others_are_read(
        salt: u64, bodies in bodies(), which: prop::sample::Index, byte: prop::sample::Index, flip in 1_u8..,
    ) {
        let (mut bytes, places) = segment(salt, &bodies);
        let which = which.index(bodies.len());
        let at = places[which];
        // Anywhere in the frame but in the zeros that fill it up.
        let hit = at + byte.index(FRAME_HEADER + bodies[which].len());
        bytes[hit] ^= flip;
        let got = events(&bytes, salt);
        let want: Vec<_> = (10..).zip(bodies.clone()).filter(|(n, _)| *n != 10 + which as u64).collect();
        prop_assert_eq!(got, want);
        let gaps: Vec<_> = Frames::new(&bytes, salt, None, MAX_BODY)
            .filter(|item| matches!(item, Item::Gap { .. }))
            .collect();
        // The last one is a torn tail.
        prop_assert_eq!(gaps.len(), usize::from(which + 1 < bodies.len()));
        if let [Item::Gap { numbers, .. }] = gaps[..] && which > 0 {
            prop_assert_eq!(numbers, (10 + which as u64, 11 + which as u64));
        }
    }

    #[test]
    fn a_torn_tail_is_cut(salt: u64, bodies in bodies(), cut: prop::sample::Index, zero: bool) {
        let (mut bytes, places) = segment(salt, &bodies);
        let from = FRAMES + cut.index(bytes.len() - FRAMES);
        if zero { bytes[from..].fill(0) } else { bytes.truncate(from) }
        let end = |n: usize| places[n] + FRAME_HEADER + bodies[n].len();
        // A body may end in zeros of its own: then nothing of it is lost.
        let whole = (0..bodies.len()).take_while(|n| {
            let lost = from.max(places[*n]).min(end(*n))..end(*n);
            lost.is_empty() || zero && bodies[*n][lost.start.saturating_sub(places[*n] + FRAME_HEADER)..].iter().all(|b| *b == 0)
                && lost.start >= places[*n] + FRAME_HEADER
        }).count();
        let got = events(&bytes, salt);
        prop_assert_eq!(got.len(), whole);
        let want: Vec<_> = (10..).zip(bodies).take(whole).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn events_that_spell_frames_are_none(salt: u64, bodies in bodies()) {
        // Somebody's strings hold a whole segment of another salt, and its own frame is damaged.
        let (inner, _) = segment(!salt, &bodies);
        let inner = inner[FRAMES..].to_vec();
        let len = inner.len();
        let (mut bytes, places) = segment(salt, &[vec![1], inner, vec![2]]);
        bytes[places[1] + 4] ^= 1;
        let got: Vec<_> = Frames::new(&bytes, salt, None, len).collect();
        prop_assert_eq!(got, [
            Item::Event { sequence: 10, body: &[1] },
            Item::Gap { numbers: (11, 12), unfinished: false },
            Item::Event { sequence: 12, body: &[2] },
        ]);
    }

    #[test]
    fn any_bytes_end_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..20_000), salt: u64, at: Option<(usize, u64)>) {
        let _ = Header::decode(&bytes);
        let _ = Seal::decode(&bytes, salt);
        let _ = crate::spool::read_any(&bytes);
        let found = Frames::new(&bytes, salt, at, MAX_BODY).count();
        prop_assert!(found <= bytes.len() / 8 + 1);
    }

    #[test]
    fn seals_read_back_and_a_flipped_bit_is_none(events: u32, end in FRAMES as u32.., first: u64, more: u32, salt: u64, bit in 0..8 * Seal::LEN) {
        let first = first / 2;
        let seal = Seal { events, end, first, next: first + u64::from(more) };
        let mut page = header(salt).encode();
        page[SEAL..SEAL + Seal::LEN].copy_from_slice(&seal.encode(salt));
        prop_assert_eq!(Seal::decode(&page, salt), Some(seal));
        page[SEAL + bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(Seal::decode(&page, salt), None);
    }

    #[test]
    fn a_header_with_a_flipped_bit_is_none(bit in 0..8 * (HEADER_CRC + 4)) {
        let mut page = header(9).encode();
        page[bit / 8] ^= 1 << (bit % 8);
        // Bytes 12 to 16 are covered like all others.
        prop_assert_eq!(Header::decode(&page), None);
    }
}

#[test]
fn a_number_that_was_given_and_never_written_is_told_apart_from_damage() {
    let bodies: Vec<Vec<u8>> = (1..=3).map(|n| vec![n; 20]).collect();
    let (mut bytes, places) = segment(7, &bodies);
    // Killed after it had taken its place and copied half of the event.
    bytes[places[1]..places[1] + 16].fill(0);
    bytes[places[1] + 25..places[2]].fill(0);
    let items: Vec<_> = Frames::new(&bytes, 7, None, MAX_BODY).collect();
    assert_eq!(items[1], Item::Gap { numbers: (11, 12), unfinished: true });
    assert_eq!(items.len(), 3);
}
