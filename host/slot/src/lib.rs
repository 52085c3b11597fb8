//! The slot: states, transitions, refusals and the single-slot policy. Pure: no I/O.
