//! What a plugin author uses: the contract as Rust traits, one export macro, a host double for tests.
