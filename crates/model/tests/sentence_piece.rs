//! The SentencePiece tokenizer against SentencePiece itself, on the vocabulary of the tiny model.

use model::{ModelSummary, Tokenizer, TokenizerKind};
use serde_json::Value;

fn tokenizer() -> Tokenizer {
    let path = concat!(env!("SATEEN_CHECKOUT"), "models/tiny-random-llama.gguf");
    ModelSummary::read(path.as_ref()).expect("the tiny model").1
}

#[test]
fn tokens_are_those_of_sentence_piece() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.kind(), TokenizerKind::SentencePiece);
    let golden: Value = serde_json::from_str(include_str!("data/spm.golden.json")).expect("JSON");
    let cases = golden.as_array().expect("cases");
    assert!(cases.len() > 100);
    for case in cases {
        let text = case["text"].as_str().expect("text");
        let expected: Vec<u32> =
            case["ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("id") as u32).collect();
        assert_eq!(tokenizer.encode(text).expect("encodes"), expected, "{text:?}");
        // With the space that SentencePiece adds; its own sign for a space is not told from one.
        assert_eq!(tokenizer.decode(&expected), format!(" {}", text.replace('▁', " ")));
    }
}

#[test]
fn text_inside_a_sequence_gets_no_space() {
    let tokenizer = tokenizer();
    for text in ["return x", " x", "x\n", "(self)"] {
        let inside = tokenizer.encode_inside(text).expect("encodes");
        assert_eq!(tokenizer.decode(&inside), text);
        // As the published infilling code does it: a character that never merges goes first.
        let marked = tokenizer.encode_inside(&format!("\u{263a}{text}")).expect("encodes");
        let mark = tokenizer.encode_inside("\u{263a}").expect("encodes");
        assert_eq!(marked[mark.len()..], inside);
    }
}

#[test]
fn special_tokens_are_reached_by_name_only() {
    let tokenizer = tokenizer();
    for name in ["<s>", "</s>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"] {
        let special = tokenizer.special(name).expect("a special token");
        assert!(tokenizer.bytes(special).is_empty());
        assert!(tokenizer.ends_text(special));
        for text in [name.to_owned(), name.replace('▁', " "), format!("a{name}b")] {
            assert!(!tokenizer.encode(&text).expect("encodes").contains(&special), "{text:?}");
        }
    }
    assert_eq!(tokenizer.start_of_sequence(), tokenizer.special("<s>"));
}
