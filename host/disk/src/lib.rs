//! The one way to bytes: the Disk trait, files and their locks, and simulated disks.
