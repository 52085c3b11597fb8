//! Crash enumeration over the simulated disk, and independent judges.
