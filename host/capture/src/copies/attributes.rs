//! What a file has beside its content, carried over to the file that takes its place.
//!
//! [`shape`] comes first, while the new file is empty: flags that decide how its blocks are laid
//! out, without which blocks may not be shared at all. [`dress`] comes last, when the content is
//! whole: until then nobody but its maker can open the file.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use snapslot_disk::Doing;

use super::{CopyError, sys};

/// Attributes that are not carried over: two bound to the content they were made for, which the
/// kernel makes anew, and two by which XFS shows root the access lists a second time.
const NOT_CARRIED: [&[u8]; 4] =
    [b"security.ima", b"security.evm", b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"];

/// Gives an empty file the layout of another. As far as can be: what differs costs sharing or
/// speed, never content.
pub(super) fn shape(from: &File, to: &File) {
    let kept = sys::flag::NO_COW | sys::flag::COMPRESS;
    let (there, here) = (sys::flags(from), sys::flags(to));
    if (there ^ here) & kept != 0 {
        let _ = sys::set_flags(to, (here & !kept) | (there & kept));
    }
    if let (Some(there), Some(mut here)) = (sys::layout(from), sys::layout(to)) {
        let before = here;
        here.flags = (here.flags & !sys::LAYOUT_SIZES) | (there.flags & sys::LAYOUT_SIZES);
        here.extent_size = there.extent_size;
        here.cow_extent_size = there.cow_extent_size;
        here.project = there.project;
        if here != before {
            let _ = sys::set_layout(to, &here);
        }
    }
}

/// Gives `to` the owner, mode and extended attributes of `from`: access lists and the label of a
/// security module are among these, and a machine may not start without them. So it is all or an
/// error.
pub(super) fn dress(from: &File, to: &File, name: &str) -> Result<(), CopyError> {
    let fail = |e: std::io::Error| CopyError::io(name, Doing::Name, e);
    let (model, now) = (from.metadata().map_err(fail)?, to.metadata().map_err(fail)?);
    if (model.uid(), model.gid()) != (now.uid(), now.gid()) {
        let (owner, group) = (model.uid().into(), model.gid().into());
        nix::unistd::fchown(to, Some(owner), Some(group)).map_err(|e| fail(e.into()))?;
    }
    let wanted = sys::attributes(from).map_err(fail)?;
    // The folder's default access list may have given it one that the model lacks.
    for extra in sys::attributes(to).map_err(fail)? {
        if !wanted.contains(&extra) && !NOT_CARRIED.contains(&extra.to_bytes()) {
            sys::remove_attribute(to, &extra).map_err(fail)?;
        }
    }
    // Before the access list: with one in place, the group's bits mean its mask.
    to.set_permissions(PermissionsExt::from_mode(model.mode() & 0o7777)).map_err(fail)?;
    for attribute in wanted.iter().filter(|a| !NOT_CARRIED.contains(&a.to_bytes())) {
        let Some(value) = sys::attribute(from, attribute).map_err(fail)? else { continue };
        // A label that is right already may be one we could not set.
        if sys::attribute(to, attribute).map_err(fail)?.as_ref() != Some(&value) {
            sys::set_attribute(to, attribute, &value).map_err(fail)?;
        }
    }
    Ok(())
}

/// Why a file could not be replaced by another under its name.
pub(super) fn unsuitable(image: &File, folder: &File) -> std::io::Result<Option<String>> {
    let (file, dir) = (image.metadata()?, folder.metadata()?);
    let fixed = sys::flag::IMMUTABLE | sys::flag::APPEND;
    Ok(if file.nlink() != 1 {
        let names = file.nlink();
        Some(format!(
            "it has {names} names (hard links), and a restore would change one of them only"
        ))
    } else if sys::flags(image) & fixed != 0 {
        Some("it is marked immutable or append-only (chattr -ia takes that away)".to_owned())
    } else if sys::flags(folder) & fixed != 0 {
        Some(
            "its folder is marked immutable or append-only (chattr -ia takes that away)".to_owned(),
        )
    } else if file.dev() != dir.dev() {
        Some(
            "another file system's file is mounted on its name; use that file's own path"
                .to_owned(),
        )
    } else {
        None
    })
}
