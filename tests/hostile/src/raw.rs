//! Handles as no binding would use them.

#[cfg(target_arch = "wasm32")]
use snapslot_plugin_sdk::bindings::snapslot::backend::sight::Image;

#[cfg(target_arch = "wasm32")]
fn of(handle: u32) -> Image {
    // SAFETY: it is not, and that is the point: the host has to see to it.
    unsafe { Image::from_handle(handle) }
}

#[cfg(target_arch = "wasm32")]
pub fn forged(handle: u32) {
    std::hint::black_box(of(handle).size());
}

#[cfg(target_arch = "wasm32")]
pub fn dropped_twice() {
    for handle in 1..100 {
        drop(of(handle));
        drop(of(handle));
    }
}

#[cfg(target_arch = "wasm32")]
pub fn used_after_drop() {
    for handle in 1..100 {
        drop(of(handle));
        forged(handle);
    }
}

#[cfg(not(target_arch = "wasm32"))]
pub fn forged(_: u32) {}
#[cfg(not(target_arch = "wasm32"))]
pub fn dropped_twice() {}
#[cfg(not(target_arch = "wasm32"))]
pub fn used_after_drop() {}
