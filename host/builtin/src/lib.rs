//! The built-in plugins: components like any other, embedded in the program.

/// Name and component of each built-in plugin.
pub const PLUGINS: &[(&str, &[u8])] = &[("qcow2", QCOW2)];

const QCOW2: &[u8] = include_bytes!(env!("SNAPSLOT_PLUGIN_QCOW2"));
