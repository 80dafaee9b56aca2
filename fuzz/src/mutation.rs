//! Changes that find what checks forget.

/// Numbers that lengths, counts and offsets break at.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    7,
    31,
    32,
    127,
    255,
    256,
    65_535,
    65_536,
    i32::MAX as u64,
    u32::MAX as u64,
    1 << 32,
    i64::MAX as u64,
    u64::MAX,
];

/// Changes `input` a little, to at most `max_bytes`.
pub(crate) fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut fastrand::Rng, max_bytes: usize) {
    let n = input.len();
    let at = if n == 0 { 0 } else { random.usize(..n) };
    match random.u8(..10) {
        0 if n > 0 => input[at] ^= 1 << random.u8(..8),
        1 if n > 0 => input[at] = random.u8(..),
        // A number of any width.
        2 | 3 if n >= 8 => {
            let at = random.usize(..=n - 8);
            let number = NUMBERS[random.usize(..NUMBERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][random.usize(..4)];
            input[at..at + width].copy_from_slice(&number[..width]);
        }
        // One that was there, a little more or less.
        4 if n >= 8 => {
            let at = random.usize(..=n - 8);
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&input[at..at + 8]);
            let number = u64::from_le_bytes(bytes).wrapping_add_signed(random.i64(-3..=3));
            input[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        5 if n > 0 => input.truncate(at),
        6 if n > 0 => {
            input.drain(at..(at + random.usize(1..=16)).min(n));
        }
        7 => {
            let more: Vec<u8> = (0..random.usize(1..=16)).map(|_| random.u8(..)).collect();
            input.splice(at..at, more);
        }
        // A piece of itself or of another seed, in the place of what stands there or beside it.
        8 | 9 => {
            let other = &seeds[random.usize(..seeds.len())];
            if !other.is_empty() {
                let from = random.usize(..other.len());
                let piece = other[from..(from + random.usize(1..=256)).min(other.len())].to_vec();
                let end = if random.bool() { at } else { (at + piece.len()).min(n) };
                input.splice(at..end, piece);
            }
        }
        _ => input.push(random.u8(..)),
    }
    input.truncate(max_bytes);
}
