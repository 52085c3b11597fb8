//! The built-in plugins: components like any other, embedded in the program.

/// A built-in plugin. What stands beside the component is what its description says too, so that
/// a locator can be read without starting every plugin; a test holds them against each other.
#[derive(Clone, Copy, Debug)]
pub struct Builtin {
    /// The backend's name in locators.
    pub name: &'static str,
    /// What kind of place its volumes have: `image`, `lvm-volume`, `zfs-dataset`, `directory`.
    pub place: &'static str,
    /// File endings by which a bare path is known as its own.
    pub endings: &'static [&'static str],
    /// The component.
    pub component: &'static [u8],
    /// Its sha256, in hexadecimal digits.
    pub digest: &'static str,
}

/// All of them.
pub const PLUGINS: &[Builtin] = &[
    Builtin {
        name: "qcow2",
        place: "image",
        endings: &[".qcow2"],
        component: include_bytes!(env!("SNAPSLOT_PLUGIN_QCOW2")),
        digest: env!("SNAPSLOT_PLUGIN_QCOW2_DIGEST"),
    },
    Builtin {
        name: "lvm",
        place: "lvm-volume",
        endings: &[],
        component: include_bytes!(env!("SNAPSLOT_PLUGIN_LVM")),
        digest: env!("SNAPSLOT_PLUGIN_LVM_DIGEST"),
    },
    Builtin {
        name: "zfs",
        place: "zfs-dataset",
        endings: &[],
        component: include_bytes!(env!("SNAPSLOT_PLUGIN_ZFS")),
        digest: env!("SNAPSLOT_PLUGIN_ZFS_DIGEST"),
    },
    Builtin {
        name: "raw",
        place: "image",
        endings: &[],
        component: include_bytes!(env!("SNAPSLOT_PLUGIN_RAW")),
        digest: env!("SNAPSLOT_PLUGIN_RAW_DIGEST"),
    },
];
