//! Looking: what is there, and what forbids a plan.

use snapslot_plugin_sdk::{Facts, Failure, FailureKind, Finding, Snapshot};

use crate::header::{
    AUTOCLEAR_BITMAPS, INCOMPATIBLE_CORRUPT, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY,
    INCOMPATIBLE_KNOWN,
};
use crate::volume::Volume;

pub(crate) fn inspect(volume: &Volume<'_>) -> Result<Facts, Failure> {
    let header = &volume.header;
    let mut findings: Vec<Finding> = blockers(volume)
        .into_iter()
        .map(|f| Finding { code: f.code, message: f.message, blocks: true })
        .collect();
    if header.bitmaps.is_some_and(|b| b.count > 0) && header.autoclear & AUTOCLEAR_BITMAPS != 0 {
        findings.push(Finding {
            code: "bitmaps".to_owned(),
            message: "the image holds dirty bitmaps; a restore marks them inconsistent, so the \
                      next incremental backup has to be a full one"
                .to_owned(),
            blocks: false,
        });
    }
    let snapshots = (volume.snapshots.entries.iter())
        .map(|e| Snapshot {
            identity: e.identity(),
            name: e.name.clone(),
            mark: e.mark(),
            taken_seconds: u64::from(e.seconds),
            taken_nanoseconds: e.nanoseconds,
            virtual_size: e.disk_size.unwrap_or(header.fields.size),
            vm_state_size: e.vm_state_size,
        })
        .collect();
    Ok(Facts { virtual_size: header.fields.size, format: format(volume), snapshots, findings })
}

fn format(volume: &Volume<'_>) -> String {
    let header = &volume.header;
    let size = header.cluster_size();
    let cluster = match size >> 10 {
        0 => format!("{size} B"),
        kib @ 1..1024 => format!("{kib} KiB"),
        kib => format!("{} MiB", kib >> 10),
    };
    let mut words = format!("qcow2 v{}, {cluster} clusters", header.version);
    if header.refcount_order != 4 {
        words += &format!(", {}-bit reference counts", 1 << header.refcount_order);
    }
    if header.extended_l2() {
        words += ", subclusters";
    }
    match header.crypt_method {
        0 => {}
        2 => words += ", LUKS",
        _ => words += ", AES",
    }
    if header.has_backing() {
        words += ", with a backing file";
    }
    words
}

/// Fails if no plan can be made.
pub(crate) fn refuse_unsound(volume: &Volume<'_>) -> Result<(), Failure> {
    match blockers(volume).into_iter().next() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn blockers(volume: &Volume<'_>) -> Vec<Failure> {
    let header = &volume.header;
    let bits = header.incompatible;
    let mut found = Vec::new();
    let mut block = |kind, code: &str, message: &str| found.push(Failure::new(kind, code, message));
    if header.sealed() {
        block(
            FailureKind::Corrupt,
            "sealed",
            "a change of this image was interrupted and its journal is not beside it; bring the \
             journal back, or let `qemu-img check -r all` count references anew: the content is whole",
        );
    } else if bits & INCOMPATIBLE_DIRTY != 0 {
        block(
            FailureKind::Corrupt,
            "dirty",
            "the image was not closed cleanly, so its reference counts may be off; \
             `qemu-img check -r all` repairs them",
        );
    }
    if bits & INCOMPATIBLE_CORRUPT != 0 {
        block(
            FailureKind::Corrupt,
            "corrupt-bit",
            "QEMU marked the image as corrupt; `qemu-img check -r all` tells and repairs what it can",
        );
    }
    if bits & INCOMPATIBLE_DATA_FILE != 0 {
        block(
            FailureKind::Unsupported,
            "data-file",
            "the image keeps its data in an external file, for which the format has no snapshots",
        );
    }
    if bits & !INCOMPATIBLE_KNOWN != 0 {
        block(
            FailureKind::Unsupported,
            "unknown-features",
            "the image uses features of a later version of the format",
        );
    }
    found
}
