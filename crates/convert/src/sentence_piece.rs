//! `tokenizer.model` of SentencePiece: its pieces, with scores and types.
//!
//! The file is a message of protocol buffers; of `sentencepiece_model.proto` only the pieces and whether a text gets a
//! space in front are wanted.

use std::path::Path;

use crate::ConvertError;

/// A piece, as `ModelProto.SentencePiece` has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) score: f32,
    /// 1 is normal, 2 unknown, 3 control, 4 defined by the user, 5 unused, 6 a byte: a GGUF file's numbers, too.
    pub(crate) kind: i32,
}

/// What a model file says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SentencePieceModel {
    pub(crate) pieces: Vec<Piece>,
    /// Whether a text gets a space in front.
    pub(crate) adds_space: bool,
}

/// Largest file.
const MAX_BYTES: u64 = 64 << 20;

impl SentencePieceModel {
    pub(crate) fn read(path: &Path) -> Result<Self, ConvertError> {
        let n_bytes = std::fs::metadata(path).map_err(ConvertError::io(path))?.len();
        if n_bytes > MAX_BYTES {
            return Err(ConvertError::unreadable(path, format!("it has {n_bytes} bytes")));
        }
        let bytes = std::fs::read(path).map_err(ConvertError::io(path))?;
        Self::parse(&bytes).ok_or_else(|| ConvertError::unreadable(path, "it is no SentencePiece model"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut model = Self { pieces: Vec::new(), adds_space: true };
        let mut message = Message { rest: bytes };
        while let Some(field) = message.next()? {
            match field {
                (1, Field::Bytes(piece)) => model.pieces.push(parse_piece(piece)?),
                (3, Field::Bytes(normalizer)) => {
                    let mut normalizer = Message { rest: normalizer };
                    while let Some(field) = normalizer.next()? {
                        if let (3, Field::Number(adds)) = field {
                            model.adds_space = adds != 0;
                        }
                    }
                }
                _ => {}
            }
        }
        (!model.pieces.is_empty()).then_some(model)
    }
}

fn parse_piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    let mut message = Message { rest: bytes };
    while let Some(field) = message.next()? {
        match field {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Fixed32(score)) => piece.score = f32::from_le_bytes(score),
            (3, Field::Number(kind)) => {
                let kind = i32::try_from(kind).ok();
                piece.kind = kind.filter(|kind| (1..=6).contains(kind))?;
            }
            _ => {}
        }
    }
    Some(piece)
}

enum Field<'a> {
    Number(u64),
    Fixed32([u8; 4]),
    Fixed64,
    Bytes(&'a [u8]),
}

/// What is left of a message (<https://protobuf.dev/programming-guides/encoding/>).
struct Message<'a> {
    rest: &'a [u8],
}

impl<'a> Message<'a> {
    /// The next field's number and value; the outer `None` is a mistake, the inner one the end.
    #[allow(clippy::option_option)]
    fn next(&mut self) -> Option<Option<(u64, Field<'a>)>> {
        if self.rest.is_empty() {
            return Some(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let n = usize::try_from(self.varint()?).ok()?;
                Field::Bytes(self.take(n)?)
            }
            5 => Field::Fixed32(self.take(4)?.try_into().ok()?),
            _ => return None,
        };
        Some(Some((tag >> 3, field)))
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pieces, and no space in front, byte by byte.
    #[test]
    fn pieces_are_read() {
        let a = [0x0a, 1, b'a', 0x15, 0, 0, 0xc0, 0xbf, 0x18, 1];
        let b = [0x0a, 6, b'<', b'0', b'x', b'4', b'1', b'>', 0x18, 6];
        let mut bytes = vec![0x0a, a.len() as u8];
        bytes.extend(a);
        bytes.extend([0x0a, b.len() as u8]);
        bytes.extend(b);
        bytes.extend([0x12, 2, 0x08, 1, 0x1a, 2, 0x18, 0]);
        let model = SentencePieceModel::parse(&bytes).expect("a model");
        let piece = |text: &str, score, kind| Piece { text: text.to_owned(), score, kind };
        assert_eq!(model.pieces, [piece("a", -1.5, 1), piece("<0x41>", 0.0, 6)]);
        assert!(!model.adds_space);
        // Cut anywhere, it is no model, or one of fewer pieces; never a panic.
        for n in 0..bytes.len() {
            assert!(SentencePieceModel::parse(&bytes[..n]).is_none_or(|model| model.pieces.len() <= 2));
        }
        assert_eq!(
            SentencePieceModel::parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
            None
        );
    }
}
