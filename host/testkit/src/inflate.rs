//! Raw deflate (RFC 1951), for reading compressed clusters.
//!
//! A second implementation of its own so that the judge shares no code with what it judges.
//! Small rather than fast: canonical Huffman decoding bit by bit.

const LENGTH_BASE: [u16; 29] = [
    3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131,
    163, 195, 227, 258,
];
const LENGTH_EXTRA: [u8; 29] =
    [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0];
const DISTANCE_BASE: [u16; 30] = [
    1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537,
    2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577,
];
/// Order in which the lengths of the code length code are stored (RFC 1951, 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Unpacks `input` to exactly `length` bytes; what follows them is ignored. `None`: not a
/// stream that gives so many.
pub fn inflate(input: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut bits = Bits { input, at: 0 };
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        let last = bits.take(1)? == 1;
        match bits.take(2)? {
            0 => stored(&mut bits, &mut out, length)?,
            1 => block(&mut bits, &mut out, length, &fixed_literals(), &Code::new(&[5; 30]))?,
            2 => {
                let (literals, distances) = dynamic_codes(&mut bits)?;
                block(&mut bits, &mut out, length, &literals, &distances)?;
            }
            _ => return None,
        }
        if last {
            break;
        }
    }
    (out.len() == length).then_some(out)
}

struct Bits<'a> {
    input: &'a [u8],
    /// In bits.
    at: usize,
}

impl Bits<'_> {
    fn take(&mut self, count: u8) -> Option<u32> {
        let mut value = 0;
        for i in 0..count {
            let byte = self.input.get(self.at / 8)?;
            value |= u32::from(byte >> (self.at % 8) & 1) << i;
            self.at += 1;
        }
        Some(value)
    }
}

/// A canonical Huffman code: how many codes of each length, and symbols in order of code.
struct Code {
    counts: [u16; 16],
    symbols: Vec<u16>,
}

impl Code {
    fn new(lengths: &[u8]) -> Code {
        let mut counts = [0; 16];
        let mut symbols = Vec::new();
        for length in 1..16_u8 {
            for (symbol, l) in lengths.iter().enumerate() {
                if *l == length {
                    counts[usize::from(length)] += 1;
                    symbols.push(symbol as u16);
                }
            }
        }
        Code { counts, symbols }
    }

    fn symbol(&self, bits: &mut Bits<'_>) -> Option<u16> {
        let (mut code, mut first, mut index) = (0_u32, 0_u32, 0_u32);
        for count in &self.counts[1..] {
            code |= bits.take(1)?;
            let count = u32::from(*count);
            if code < first + count {
                return self.symbols.get((index + code - first) as usize).copied();
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

fn fixed_literals() -> Code {
    let mut lengths = [8; 288];
    lengths[144..256].fill(9);
    lengths[256..280].fill(7);
    Code::new(&lengths)
}

fn dynamic_codes(bits: &mut Bits<'_>) -> Option<(Code, Code)> {
    let literals = bits.take(5)? as usize + 257;
    let distances = bits.take(5)? as usize + 1;
    let mut small = [0; 19];
    for place in &ORDER[..bits.take(4)? as usize + 4] {
        small[*place] = bits.take(3)? as u8;
    }
    let small = Code::new(&small);
    let mut lengths = Vec::new();
    while lengths.len() < literals + distances {
        let (value, times) = match small.symbol(bits)? {
            16 => (*lengths.last()?, 3 + bits.take(2)?),
            17 => (0, 3 + bits.take(3)?),
            18 => (0, 11 + bits.take(7)?),
            length => (length as u8, 1),
        };
        lengths.extend(std::iter::repeat_n(value, times as usize));
    }
    let lengths = lengths.get(..literals + distances)?;
    Some((Code::new(&lengths[..literals]), Code::new(&lengths[literals..])))
}

fn stored(bits: &mut Bits<'_>, out: &mut Vec<u8>, limit: usize) -> Option<()> {
    bits.at = bits.at.div_ceil(8) * 8;
    let length = bits.take(16)?;
    if length ^ 0xffff != bits.take(16)? {
        return None;
    }
    for _ in 0..length {
        if out.len() == limit {
            return Some(());
        }
        out.push(bits.take(8)? as u8);
    }
    Some(())
}

fn block(
    bits: &mut Bits<'_>,
    out: &mut Vec<u8>,
    limit: usize,
    literals: &Code,
    distances: &Code,
) -> Option<()> {
    while out.len() < limit {
        match literals.symbol(bits)? {
            literal @ 0..256 => out.push(literal as u8),
            256 => return Some(()),
            symbol => {
                let index = usize::from(symbol - 257);
                let extra = bits.take(*LENGTH_EXTRA.get(index)?)?;
                let length = u32::from(*LENGTH_BASE.get(index)?) + extra;
                let index = usize::from(distances.symbol(bits)?);
                let base = u32::from(*DISTANCE_BASE.get(index)?);
                let distance = base + bits.take((index as u8 / 2).saturating_sub(1))?;
                // Byte by byte: a distance shorter than the length repeats what it just wrote.
                let from = out.len().checked_sub(distance as usize)?;
                for i in from..from + (length as usize).min(limit - out.len()) {
                    out.push(out[i]);
                }
            }
        }
    }
    // The end-of-block code may lie behind the last byte asked for.
    Some(())
}
