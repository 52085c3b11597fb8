//! The contract's bindings on the host's side.
#![allow(missing_docs)]

wasmtime::component::bindgen!({
    path: "../../wit/backend",
    world: "storage",
    imports: { default: trappable },
    with: {
        "snapslot:backend/sight.image": crate::host::ImageHandle,
        "snapslot:backend/sight.target": crate::host::TargetHandle,
        "snapslot:backend/planning.plan": crate::host::PlanHandle,
    },
    additional_derives: [PartialEq, serde::Serialize, serde::Deserialize],
});

pub(crate) use snapslot::backend::{log, planning, sight, types};
