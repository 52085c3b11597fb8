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
    if header.crypt_method != 0 {
        findings.push(Finding {
            code: "encrypted".to_owned(),
            message: "the content is encrypted: the slot works as ever, but content cannot be \
                      exported or looked into without the key"
                .to_owned(),
            blocks: false,
        });
    }
    if header.bitmaps.is_some_and(|b| b.count > 0) && header.autoclear & AUTOCLEAR_BITMAPS != 0 {
        findings.push(Finding {
            code: "bitmaps".to_owned(),
            message: "the image holds dirty bitmaps; a restore marks them inconsistent, so the \
                      next incremental backup has to be a full one"
                .to_owned(),
            blocks: false,
        });
    }
    if header.bitmaps.is_some_and(|b| b.count > 0) && !volume.snapshots.entries.is_empty() {
        findings.push(Finding {
            code: "bitmaps-and-repair".to_owned(),
            message: "the image holds dirty bitmaps and snapshots: `qemu-img check -r` (seen with \
                      QEMU 10.0) would drop every snapshot; remove the bitmaps first"
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
            lost: false,
        })
        .collect();
    Ok(Facts {
        identity: None,
        virtual_size: header.fields.size,
        format: format(volume),
        snapshots,
        findings,
        unfinished: None,
    })
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
    let repair = if header.bitmaps.is_some_and(|b| b.count > 0) {
        "`qemu-io -c quit` on the image repairs them (not `qemu-img check -r`: on an image with \
         bitmaps it drops the snapshots)"
    } else {
        "`qemu-img check -r all` counts them anew"
    };
    let mut found = Vec::new();
    let mut block = |kind, code: &str, message: &str| found.push(Failure::new(kind, code, message));
    if header.sealed() {
        block(
            FailureKind::Corrupt,
            "sealed",
            &format!(
                "a change of this image was interrupted and its journal is not beside it; the \
                 content is whole, its reference counts may be off. Bring the journal back and \
                 run `snapslot recover`; or {repair}"
            ),
        );
    } else if bits & INCOMPATIBLE_DIRTY != 0 {
        block(
            FailureKind::Corrupt,
            "dirty",
            &format!(
                "the image was not closed cleanly, so its reference counts may be off; {repair}"
            ),
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
