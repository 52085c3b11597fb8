//! What it does before it is asked anything: when the component is instantiated.

/// Run by the language's runtime at the start of every instance.
#[cfg(target_arch = "wasm32")]
#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

#[cfg(target_arch = "wasm32")]
extern "C" fn at_start() {
    match crate::number() {
        32 => crate::forever(),
        33 => panic!("as told, at the start"),
        _ => {}
    }
}
