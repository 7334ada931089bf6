//! Texts of others: the specifications' own, those of Go's `sumdb/note`, and keys of public logs and witnesses.

use proptest::prelude::*;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::*;

/// From the documentation of golang.org/x/mod/sumdb/note.
const NEUMANN: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const NEUMANN_SECRET: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const NEUMANN_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n\
    \n\
    — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

/// The example of c2sp.org/tlog-cosignature.
const COSIGNED: &str = "example.com/behind-the-sofa\n\
    20852163\n\
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\
    \n\
    — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
    — witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";

fn keys() -> (SigningKey, SigningKey) {
    let key = |name, kind| SigningKey::generate(name, kind).unwrap().0;
    (key("audit.example.com", KeyKind::Log), key("audit.example.com/witness", KeyKind::Witness))
}

fn checkpoint() -> Checkpoint {
    Checkpoint { origin: "audit.example.com/prod".into(), size: 20_852_163, root: [7; 32] }
}

#[test]
fn a_note_of_go_is_made_to_the_byte() {
    let note: Note = NEUMANN_NOTE.parse().unwrap();
    assert_eq!(note.to_string(), NEUMANN_NOTE);
    let key: VerifierKey = NEUMANN.parse().unwrap();
    assert_eq!(note.verify(std::slice::from_ref(&key)), Ok(vec![Signed { key: 0, at_s: None }]));
    let secret: SigningKey = NEUMANN_SECRET.parse().unwrap();
    assert_eq!(secret.verifier(), &key);
    let made = Note::new(note.text().to_owned(), vec![secret.sign(note.text(), 0)]).unwrap();
    assert_eq!(made.to_string(), NEUMANN_NOTE);
}

#[test]
fn keys_of_public_logs_and_witnesses_are_read() {
    for (text, kind) in [
        ("sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8", KeyKind::Log),
        ("TEST+7997405c+AQcC+FTVKf0jlTdHDY3rbevmnKxxPjigCXlVtGe6RIr6", KeyKind::Log),
        ("remora.n621.de+da77ade7+BOvN63jn/bLvkieywe8R6UYAtVtNbZpXh34x7onlmtw2", KeyKind::Witness),
    ] {
        let key: VerifierKey = text.parse().unwrap();
        assert_eq!((key.kind(), key.to_string()), (kind, text.to_owned()));
    }
}

#[test]
fn what_is_no_key_is_refused_without_a_word_of_it() {
    for (text, why) in [
        ("", WrongKey::Public),
        ("name", WrongKey::Public),
        ("name+12345678", WrongKey::Public),
        ("name+12345678+AQ==", WrongKey::Public),
        ("name+12345678+THIS_IS_NOT_BASE64!", WrongKey::Public),
        ("PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", WrongKey::Public),
        ("PeterNeumann+c74f20a3+Ahpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", WrongKey::Public),
        ("PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", WrongKey::Id),
        ("PeterNeumann+c74f20a3+BBpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", WrongKey::Id),
        ("Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", WrongKey::Name),
        ("+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", WrongKey::Name),
    ] {
        assert_eq!(text.parse::<VerifierKey>(), Err(why), "{text}");
    }
    for (text, why) in [(NEUMANN, WrongKey::Private), (&NEUMANN_SECRET.replace("c74f", "c74e"), WrongKey::Id)] {
        assert_eq!(text.parse::<SigningKey>().unwrap_err(), why);
    }
}

#[test]
fn a_secret_is_read_back_and_shown_nowhere() {
    for kind in [KeyKind::Log, KeyKind::Witness] {
        let (key, text) = SigningKey::generate("audit.example.com", kind).unwrap();
        let secret = text.splitn(5, '+').last().unwrap();
        assert_eq!(secret.len(), 44);
        let again: SigningKey = text.parse().unwrap();
        assert_eq!(again.verifier(), key.verifier());
        assert_eq!(again.sign("text\n", 5), key.sign("text\n", 5));
        for shown in [format!("{key:?}"), format!("{again:#?}"), key.verifier().to_string()] {
            assert!(shown.contains("audit.example.com") && !shown.contains(secret), "{shown}");
        }
    }
    assert_eq!(SigningKey::generate("with space", KeyKind::Log).unwrap_err(), WrongKey::Name);
}

#[test]
fn the_example_of_the_specification_is_read() {
    let note: Note = COSIGNED.parse().unwrap();
    assert_eq!(note.to_string(), COSIGNED);
    let checkpoint = Checkpoint::parse(note.text()).unwrap();
    assert_eq!((checkpoint.origin.as_str(), checkpoint.size), ("example.com/behind-the-sofa", 20_852_163));
    assert_eq!(checkpoint.text(), note.text());
    let [log, witness] = note.signatures() else { panic!("{note:?}") };
    assert_eq!((log.id, witness.name.as_str(), witness.signature.len()), (0x033d_e0ae, "witness.example.com/w1", 72));
    assert_eq!(u64::from_be_bytes(witness.signature[..8].try_into().unwrap()), 1_679_315_147);
}

/// The message is spelt out here, and checked by the signature scheme alone.
#[test]
fn a_cosignature_is_over_the_time_and_the_text() {
    let (_, witness) = keys();
    let text =
        Checkpoint::parse("example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n")
            .unwrap()
            .text();
    let cosignature = witness.sign(&text, 1_679_315_147).signature;
    let (time, signature) = cosignature.split_at(8);
    assert_eq!(time, 1_679_315_147_u64.to_be_bytes());
    let key = witness.verifier().to_string();
    let public = BASE64.decode(key.splitn(3, '+').last().unwrap()).unwrap();
    let message = "cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n\
        CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n";
    UnparsedPublicKey::new(&ED25519, &public[1..]).verify(message.as_bytes(), signature).unwrap();
}

#[test]
fn a_checkpoint_is_believed_by_its_signatures() {
    let (log, witness) = keys();
    let text = checkpoint().text();
    let note = Note::new(text.clone(), vec![log.sign(&text, 0), witness.sign(&text, 1_700_000_000)]).unwrap();
    let note: Note = note.to_string().parse().unwrap();
    let known = [witness.verifier().clone(), log.verifier().clone()];
    let signed = [Signed { key: 1, at_s: None }, Signed { key: 0, at_s: Some(1_700_000_000) }];
    assert_eq!(note.verify(&known), Ok(signed.to_vec()));
    assert_eq!(note.verify(&known[..1]), Ok(vec![signed[1]]));
    assert_eq!(Checkpoint::parse(note.text()), Ok(checkpoint()));

    let (other_log, _) = keys();
    assert_eq!(note.verify(&[other_log.verifier().clone()]), Err(Untrusted::Nobody));
    assert_eq!(note.verify(&[]), Err(Untrusted::Nobody));
    // The same key as another kind is another key.
    let public = BASE64.decode(log.verifier().to_string().splitn(3, '+').last().unwrap()).unwrap();
    let as_witness = VerifierKey::new("audit.example.com", KeyKind::Witness, public[1..].try_into().unwrap()).unwrap();
    assert_eq!(note.verify(&[as_witness]), Err(Untrusted::Nobody));
}

#[test]
fn one_bad_signature_of_a_known_key_spoils_the_note() {
    let (log, witness) = keys();
    let text = checkpoint().text();
    let mut bad = witness.sign(&text, 1_700_000_000);
    bad.signature[3] ^= 1;
    let note = Note::new(text.clone(), vec![log.sign(&text, 0), bad]).unwrap();
    let (name, id) = (witness.verifier().name().to_owned(), witness.verifier().id());
    let known = [log.verifier().clone(), witness.verifier().clone()];
    assert_eq!(note.verify(&known), Err(Untrusted::Signature { name, id }));
    assert!(note.verify(&known[..1]).is_ok());
}

#[test]
fn the_same_tree_is_signed_with_the_same_bytes_by_the_log_and_not_by_a_witness() {
    let (log, witness) = keys();
    let text = checkpoint().text();
    assert_eq!(log.sign(&text, 1), log.sign(&text, 2));
    assert_ne!(witness.sign(&text, 1), witness.sign(&text, 2));
}

#[test]
fn what_is_no_note_is_refused() {
    let line = NEUMANN_NOTE.lines().last().unwrap();
    for wrong in [
        String::new(),
        "text\n".into(),
        "text\n\n".into(),
        format!("text\n{line}\n"),
        format!("text\n\n{line}"),
        format!("text\n\n{line}\n\n"),
        format!("te\txt\n\n{line}\n"),
        format!("text\r\n\n{line}\n"),
        format!("text\n\n-{}\n", &line["\u{2014}".len()..]),
        "text\n\n\u{2014} name x08go/8=\n".replace("8=", "=="),
        "text\n\n\u{2014} name AAAA\n".into(),
        "text\n\n\u{2014} na+me AAAAAAAA\n".into(),
        "text\n\n\u{2014}  AAAAAAAA\n".into(),
        format!("text\n\n{}", format!("{line}\n").repeat(MANY)),
    ] {
        assert_eq!(wrong.parse::<Note>(), Err(WrongNote), "{wrong:?}");
    }
    // Blank lines belong to the text but for the last; 16 signatures are read in any case.
    let note: Note = format!("a\n\nb\n\n{}", format!("{line}\n").repeat(16)).parse().unwrap();
    assert_eq!((note.text(), note.signatures().len()), ("a\n\nb\n", 16));
}

/// More signatures than are read.
const MANY: usize = 65;

#[test]
fn what_is_no_checkpoint_is_refused() {
    let root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=";
    let parse = Checkpoint::parse;
    assert_eq!(parse(&format!("o\n0\n{root}\nextension\n")).unwrap().size, 0);
    for wrong in [
        format!("o\n0\n{root}"),
        format!("\n0\n{root}\n"),
        format!("o\n01\n{root}\n"),
        format!("o\n+1\n{root}\n"),
        format!("o\n-1\n{root}\n"),
        format!("o\n18446744073709551616\n{root}\n"),
        format!("o\n0\n{root}\n\nextension\n"),
        format!("o\n0\n{}\n", &root[4..]),
        "o\n0\n".into(),
        String::new(),
    ] {
        assert_eq!(parse(&wrong), Err(WrongCheckpoint), "{wrong:?}");
    }
}

proptest! {
    #[test]
    fn no_changed_bit_of_a_checkpoint_is_believed(size: u64, root: [u8; 32], at: prop::sample::Index) {
        let (log, witness) = keys();
        let text = Checkpoint { origin: "audit.example.com/prod".into(), size, root }.text();
        let note = Note::new(text.clone(), vec![log.sign(&text, 0), witness.sign(&text, 9)]).unwrap().to_string();
        let mut bytes = note.clone().into_bytes();
        let bit = at.index(bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let known = [log.verifier().clone(), witness.verifier().clone()];
        let believed = String::from_utf8(bytes).ok().and_then(|note| note.parse::<Note>().ok()).map(|note| note.verify(&known));
        // Where a name or an id was changed, it is a signature of nobody, and the other one stands.
        if let Some(Ok(signed)) = believed {
            prop_assert!(bit / 8 > text.len() && signed.len() == 1, "bit {} of {}", bit, note);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,80}", note in "[a\n\u{2014} +A=]{0,60}") {
        for text in [text, note] {
            let _ = (text.parse::<Note>().is_ok(), text.parse::<VerifierKey>().is_ok(), Checkpoint::parse(&text).is_ok());
            prop_assert!(text.parse::<SigningKey>().is_err());
        }
    }
}
