//! Runs backend plugins: wasmtime, limits, bindings of the contract.
