//! The qcow2 backend: plans internal snapshots of QEMU's image format.
