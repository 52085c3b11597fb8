//! Reading a VHD image. Every number in it is hostile until it was compared.

use snapslot_plugin_sdk::{Content, Failure, FailureKind, Finding, Image};

use crate::corrupt;

pub const SECTOR: u64 = 512;
const FOOTER: u64 = 512;
const HEADER: u64 = 1024;
/// The specification's own limit: 2040 GiB.
const DISK_MAX: u64 = 2040 << 30;
/// Blocks have 2 MiB by default; a limit keeps the bitmap of one in a single small read.
const BLOCK_MAX: u64 = 256 << 20;
/// A block table entry that names no block.
const ABSENT: u32 = u32::MAX;

/// A VHD image.
#[derive(Debug)]
pub struct Vhd {
    pub virtual_size: u64,
    pub kind: Kind,
    pub findings: Vec<Finding>,
}

#[derive(Debug)]
pub enum Kind {
    Fixed,
    Dynamic(Dynamic),
}

/// Where a dynamic image keeps its blocks.
#[derive(Debug)]
pub struct Dynamic {
    /// Bytes of content in a block.
    pub block: u64,
    /// The sector at which each block's bitmap begins.
    table: Vec<u32>,
    /// Bytes of the image, less the footer.
    end: u64,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(four)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) << 32 | u64::from(word(bytes, at + 4))
}

/// The complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], own: usize) -> u32 {
    let all = bytes.iter().enumerate().filter(|(i, _)| !(own..own + 4).contains(i));
    !all.map(|(_, b)| u32::from(*b)).sum::<u32>()
}

impl Vhd {
    pub fn read(image: &dyn Image) -> Result<Vhd, Failure> {
        let size = image.size();
        let Some(end) = size.checked_sub(FOOTER) else {
            return Err(corrupt("no-footer", format!("{size} bytes are too few for a VHD image")));
        };
        let footer = image.read_at(end, FOOTER as u32)?;
        if &footer[..8] != b"conectix" {
            return Err(corrupt("no-footer", "it does not end with a VHD footer".to_owned()));
        }
        if word(&footer, 64) != checksum(&footer, 64) {
            return Err(corrupt(
                "footer-checksum",
                "the checksum of its footer is wrong".to_owned(),
            ));
        }
        let virtual_size = long(&footer, 48);
        if virtual_size == 0 || virtual_size > DISK_MAX || virtual_size % SECTOR != 0 {
            let what = format!("a disk of {virtual_size} bytes is none that VHD can hold");
            return Err(corrupt("disk-size", what));
        }
        let mut findings = Vec::new();
        let kind = match word(&footer, 60) {
            2 if end < virtual_size => {
                let what = format!("it holds {end} of the {virtual_size} bytes of its disk");
                return Err(corrupt("truncated", what));
            }
            2 => Kind::Fixed,
            3 => {
                if image.read_at(0, FOOTER as u32)? != footer {
                    findings.push(Finding {
                        code: "footer-copy".to_owned(),
                        message: "the copy of the footer at its beginning differs from the footer"
                            .to_owned(),
                        blocks: false,
                    });
                }
                Kind::Dynamic(Dynamic::read(image, long(&footer, 16), virtual_size, end)?)
            }
            4 => {
                let what = "it is a differencing image: without its parent a copy of it is no disk";
                return Err(Failure::new(FailureKind::Unsupported, "differencing", what));
            }
            other => {
                let what = format!("its type {other} is none that is known");
                return Err(Failure::new(FailureKind::Unsupported, "type", what));
            }
        };
        Ok(Vhd { virtual_size, kind, findings })
    }

    /// What lies at this guest offset, and for how long.
    pub fn content_at(&self, image: &dyn Image, at: u64) -> Result<(u64, Content), Failure> {
        let rest = self.virtual_size - at;
        match &self.kind {
            Kind::Fixed => Ok((rest, Content::Data(at))),
            Kind::Dynamic(dynamic) => {
                let (length, content) = dynamic.content_at(image, at)?;
                Ok((length.min(rest), content))
            }
        }
    }
}

impl Dynamic {
    fn read(image: &dyn Image, at: u64, virtual_size: u64, end: u64) -> Result<Dynamic, Failure> {
        let outside = |what: &str| corrupt("outside", format!("{what} lies outside the image"));
        let within = |at: u64, length: u64| at.checked_add(length).is_some_and(|e| e <= end);
        if !within(at, HEADER) {
            return Err(outside("its header"));
        }
        let header = image.read_at(at, HEADER as u32)?;
        if &header[..8] != b"cxsparse" || word(&header, 36) != checksum(&header, 36) {
            return Err(corrupt("header", "its header is damaged".to_owned()));
        }
        let (table, entries) = (long(&header, 16), u64::from(word(&header, 28)));
        let block = u64::from(word(&header, 32));
        if !block.is_power_of_two() || !(SECTOR..=BLOCK_MAX).contains(&block) {
            return Err(corrupt(
                "block-size",
                format!("blocks of {block} bytes are none of VHD's"),
            ));
        }
        let needed = virtual_size.div_ceil(block);
        if entries < needed || !within(table, needed * 4) {
            return Err(outside("a part of its block table"));
        }
        // At most 2040 GiB in blocks of 512 bytes: the host's limit on one read decides.
        let mut bytes = Vec::new();
        let mut read = 0;
        while read < needed * 4 {
            let part = (needed * 4 - read).min(4 << 20);
            bytes.extend(image.read_at(table + read, part as u32)?);
            read += part;
        }
        let table: Vec<u32> = bytes.chunks_exact(4).map(|c| word(c, 0)).collect();
        let dynamic = Dynamic { block, table, end };
        for (i, entry) in dynamic.table.iter().enumerate().filter(|(_, e)| **e != ABSENT) {
            if !within(u64::from(*entry) * SECTOR, dynamic.bitmap() + block) {
                return Err(outside(&format!("block {i}")));
            }
        }
        Ok(dynamic)
    }

    /// Bytes of a block's bitmap.
    fn bitmap(&self) -> u64 {
        (self.block / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
    }

    fn content_at(&self, image: &dyn Image, at: u64) -> Result<(u64, Content), Failure> {
        let (index, within) = (at / self.block, at % self.block);
        let rest = self.block - within;
        let entry = self.table.get(index as usize).copied().unwrap_or(ABSENT);
        if entry == ABSENT {
            return Ok((rest, Content::Zero));
        }
        let start = u64::from(entry) * SECTOR;
        debug_assert!(start + self.bitmap() + self.block <= self.end);
        let bitmap = image.read_at(start, self.bitmap() as u32)?;
        let present = |sector: u64| bitmap[(sector / 8) as usize] >> (7 - sector % 8) & 1 == 1;
        let first = within / SECTOR;
        let is = present(first);
        let same = (first..self.block / SECTOR).take_while(|s| present(*s) == is).count() as u64;
        let length = (same * SECTOR - within % SECTOR).min(rest);
        let content = match is {
            true => Content::Data(start + self.bitmap() + within),
            false => Content::Zero,
        };
        Ok((length, content))
    }
}
