//! The built-in plugins, compiled to wasm components and embedded.
