//! Bytes in pages that copies share, with a digest that is always at hand.
//!
//! A test that looks at a hundred thousand states of one image copies it as often, changes a few pages of each
//! copy and asks whether it saw that state before. Here a copy costs a pointer for each page, a change costs the
//! pages it touches, and the digest nothing.

use std::sync::{Arc, OnceLock};

/// Bytes of a page.
pub const PAGE: usize = 4096;

#[derive(Debug)]
struct Page {
    bytes: [u8; PAGE],
    hash: u128,
}

impl Page {
    fn new(bytes: [u8; PAGE]) -> Arc<Page> {
        Arc::new(Page { hash: hash(&bytes), bytes })
    }

    fn zeroes() -> Arc<Page> {
        static ZEROES: OnceLock<Arc<Page>> = OnceLock::new();
        ZEROES.get_or_init(|| Page::new([0; PAGE])).clone()
    }
}

/// Bytes of a file.
#[derive(Clone, Debug, Default)]
pub struct Paged {
    length: usize,
    /// Behind the end all bytes of the last page are zeroes.
    pages: Vec<Arc<Page>>,
    /// The sum of all pages' digests, each with its place.
    sum: u128,
}

impl Paged {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// 128 bits that differ for different bytes, as far as chance goes. Not against an adversary.
    pub fn digest(&self) -> u128 {
        mixed(self.sum, self.length)
    }

    /// The bytes of a range; none if it is not all within.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> bool {
        let Some(start) = self.within(offset, into.len()) else { return false };
        let mut done = 0;
        while done < into.len() {
            let (page, at) = ((start + done) / PAGE, (start + done) % PAGE);
            let n = (PAGE - at).min(into.len() - done);
            into[done..done + n].copy_from_slice(&self.pages[page].bytes[at..at + n]);
            done += n;
        }
        true
    }

    fn within(&self, offset: u64, length: usize) -> Option<usize> {
        let start = usize::try_from(offset).ok()?;
        (start.checked_add(length)? <= self.length).then_some(start)
    }

    /// Writes, and grows to hold what is written.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let start = offset as usize;
        if data.is_empty() {
            return;
        }
        self.grow(start + data.len());
        let mut done = 0;
        while done < data.len() {
            let (page, at) = ((start + done) / PAGE, (start + done) % PAGE);
            let n = (PAGE - at).min(data.len() - done);
            let old = &self.pages[page];
            if old.bytes[at..at + n] != data[done..done + n] {
                let mut bytes = old.bytes;
                bytes[at..at + n].copy_from_slice(&data[done..done + n]);
                self.put(page, Page::new(bytes));
            }
            done += n;
        }
    }

    /// Grows to at least this many, with zeroes.
    pub fn grow(&mut self, length: usize) {
        if length <= self.length {
            return;
        }
        self.length = length;
        while self.pages.len() < length.div_ceil(PAGE) {
            let zeroes = Page::zeroes();
            self.sum = self.sum.wrapping_add(mixed(zeroes.hash, self.pages.len()));
            self.pages.push(zeroes);
        }
    }

    fn put(&mut self, page: usize, new: Arc<Page>) {
        let old = mixed(self.pages[page].hash, page);
        self.sum = self.sum.wrapping_sub(old).wrapping_add(mixed(new.hash, page));
        self.pages[page] = new;
    }

    /// All of them, in one piece.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.pages.len() * PAGE);
        self.pages.iter().for_each(|page| bytes.extend_from_slice(&page.bytes));
        bytes.truncate(self.length);
        bytes
    }

    /// The first byte in which they differ, or where the shorter one ends.
    pub fn first_difference(&self, other: &Paged) -> Option<usize> {
        let both = self.pages.iter().zip(&other.pages).enumerate();
        let differs = both.into_iter().find_map(|(n, (a, b))| {
            let at = (!Arc::ptr_eq(a, b))
                .then(|| a.bytes.iter().zip(&b.bytes).position(|(a, b)| a != b));
            at.flatten().map(|at| n * PAGE + at)
        });
        let shorter = self.length.min(other.length);
        let end = (self.length != other.length).then_some(shorter);
        differs.filter(|at| *at < shorter).or(end)
    }
}

impl From<Vec<u8>> for Paged {
    fn from(bytes: Vec<u8>) -> Paged {
        let mut paged = Paged::default();
        paged.write(0, &bytes);
        paged
    }
}

impl From<&[u8]> for Paged {
    fn from(bytes: &[u8]) -> Paged {
        let mut paged = Paged::default();
        paged.write(0, bytes);
        paged
    }
}

impl PartialEq for Paged {
    fn eq(&self, other: &Paged) -> bool {
        self.length == other.length
            && self.sum == other.sum
            && self
                .pages
                .iter()
                .zip(&other.pages)
                .all(|(a, b)| Arc::ptr_eq(a, b) || a.bytes == b.bytes)
    }
}

impl Eq for Paged {}

/// Bytes in one piece, as many as some [`Paged`]: made of the one before by copying only the pages that differ.
#[derive(Debug, Default)]
pub struct Flat {
    bytes: Vec<u8>,
    pages: Vec<Arc<Page>>,
}

impl Flat {
    /// These bytes in one piece.
    pub fn of(&mut self, paged: &Paged) -> &[u8] {
        self.pages.truncate(paged.pages.len());
        self.bytes.truncate(paged.pages.len() * PAGE);
        for (n, page) in paged.pages.iter().enumerate() {
            match self.pages.get_mut(n) {
                Some(before) if Arc::ptr_eq(before, page) => {}
                Some(before) => {
                    self.bytes[n * PAGE..(n + 1) * PAGE].copy_from_slice(&page.bytes);
                    *before = page.clone();
                }
                None => {
                    self.bytes.extend_from_slice(&page.bytes);
                    self.pages.push(page.clone());
                }
            }
        }
        &self.bytes[..paged.length]
    }
}

/// Four lanes that do not wait for one another.
fn hash(bytes: &[u8; PAGE]) -> u128 {
    const K: u64 = 0x9fb2_1c65_1e98_df25;
    let mut lanes = [
        0x243f_6a88_85a3_08d3_u64,
        0x1319_8a2e_0370_7344,
        0xa409_3822_299f_31d0,
        0x082e_fa98_ec4e_6c89,
    ];
    for block in bytes.as_chunks::<32>().0 {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(K).rotate_left(29);
        }
    }
    let [a, b, c, d] = lanes;
    let high = (a ^ b.rotate_left(17)).wrapping_mul(K) ^ c;
    let low = (c ^ d.rotate_left(31)).wrapping_mul(K) ^ a;
    mixed(u128::from(high) << 64 | u128::from(low ^ b), 0)
}

/// A digest with its place, so that the sum of many does not forget the order.
fn mixed(hash: u128, place: usize) -> u128 {
    const K: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let mut x = hash ^ (place as u128 + 1).wrapping_mul(K);
    x = (x ^ (x >> 67)).wrapping_mul(K);
    x ^ (x >> 59)
}

#[cfg(test)]
mod tests {
    //! Goal: they are bytes like any others, and equal digests mean equal bytes. Method: random writes and
    //! growth, beside a plain vector.

    use super::*;

    #[test]
    fn like_a_vector() {
        let mut noise = 1_u64;
        let mut next = move |below: u64| {
            noise = noise
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (noise >> 33) % below
        };
        let mut flat = Flat::default();
        let mut seen: std::collections::HashMap<u128, Vec<u8>> = std::collections::HashMap::new();
        for _ in 0..60 {
            let mut plain: Vec<u8> = (0..next(20_000)).map(|i| i as u8).collect();
            let mut paged = Paged::from(plain.clone());
            for _ in 0..20 {
                let before = paged.clone();
                let (at, length) = (next(30_000) as usize, next(6000) as usize);
                if next(4) == 0 {
                    paged.grow(at);
                    plain.resize(plain.len().max(at), 0);
                } else if length > 0 {
                    // Few values, so that states come back.
                    let data = vec![next(2) as u8; length];
                    paged.write(at as u64, &data);
                    plain.resize(plain.len().max(at + length), 0);
                    plain[at..at + length].copy_from_slice(&data);
                }
                assert_eq!(paged.to_vec(), plain);
                assert_eq!(flat.of(&paged), plain);
                assert_eq!(flat.of(&before), before.to_vec());
                assert_eq!(Paged::from(plain.clone()), paged);
                assert_eq!(Paged::from(plain.as_slice()).digest(), paged.digest());
                let differs = before.to_vec().iter().zip(&plain).position(|(a, b)| a != b);
                let end = (before.len() != plain.len()).then_some(before.len().min(plain.len()));
                assert_eq!(before.first_difference(&paged), differs.or(end));
                assert_eq!(before == paged, before.to_vec() == plain);
                let known = seen.entry(paged.digest()).or_insert_with(|| plain.clone());
                assert_eq!(*known, plain, "two states with one digest");
                let mut read = vec![0; plain.len() / 2];
                assert!(paged.read((plain.len() / 3) as u64, &mut read));
                assert_eq!(read, plain[plain.len() / 3..plain.len() / 3 + read.len()]);
                assert!(
                    !paged.read(plain.len() as u64, &mut [0]) && !paged.read(u64::MAX, &mut [0])
                );
            }
        }
    }
}
