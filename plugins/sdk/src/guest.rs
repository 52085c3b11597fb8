//! The contract's bindings, and the traits over them.

use crate::{
    Answer, Argument, Failure, Fill, Image, Level, Mask, NewSnapshot, Plan, Role, SavedCopy,
    Saving, Target,
};

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::undocumented_unsafe_blocks)]
pub mod bindings {
    //! Generated from `wit/backend`.
    wit_bindgen::generate!({
        path: "../../wit/backend",
        world: "storage",
        pub_export_macro: true,
        default_bindings_module: "snapslot_plugin_sdk::bindings",
        additional_derives: [PartialEq],
    });
}

use bindings::snapslot::backend::{log as raw_log, planning, sight};

/// The most one step may carry.
const STEP_MAX: usize = 8 << 20;

/// Writes a line to the host's log.
pub fn log(level: Level, message: &str) {
    if cfg!(target_arch = "wasm32") {
        raw_log::write(level, message);
    }
}

/// Sends a panic's words to the host's log, as nothing else would show them. Called by the export
/// macro before every call.
pub fn report_panics() {
    std::panic::set_hook(Box::new(|info| log(Level::Warn, &info.to_string())));
}

/// An image the host handed in.
#[derive(Debug)]
pub struct GuestImage(sight::Image);

impl Image for GuestImage {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        self.0.read_at(offset, length)
    }

    fn read_ranges(&self, ranges: &[(u64, u32)]) -> Result<Vec<u8>, Failure> {
        self.0.read_ranges(ranges)
    }
}

/// The volume the host handed in.
#[derive(Debug)]
pub struct GuestTarget<'a>(pub &'a sight::Target);

impl Target for GuestTarget<'_> {
    fn place(&self) -> String {
        self.0.place()
    }

    fn image(&self, role: Role) -> Result<Box<dyn Image + '_>, Failure> {
        Ok(Box::new(GuestImage(self.0.image(role)?)))
    }

    fn ask(&self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure> {
        self.0.ask(query, arguments)
    }

    fn copies(&self) -> Result<Vec<SavedCopy>, Failure> {
        self.0.copies()
    }

    fn saving(&self) -> Result<Saving, Failure> {
        self.0.saving()
    }
}

/// The plan the host handed in.
#[derive(Debug)]
pub struct GuestPlan<'a> {
    plan: &'a planning::Plan,
    disk: Option<sight::Image>,
    target: &'a sight::Target,
}

impl<'a> GuestPlan<'a> {
    /// A plan over the volume's disk.
    pub fn new(plan: &'a planning::Plan, target: &'a sight::Target) -> Self {
        GuestPlan { plan, disk: None, target }
    }

    fn disk(&mut self) -> Result<&sight::Image, Failure> {
        match &mut self.disk {
            Some(disk) => Ok(disk),
            none => Ok(none.insert(self.target.image(Role::Disk)?)),
        }
    }
}

impl Plan for GuestPlan<'_> {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let plan = self.plan;
        let disk = self.disk()?;
        for (i, part) in data.chunks(STEP_MAX).enumerate() {
            plan.write(disk, offset + (i * STEP_MAX) as u64, part)?;
        }
        Ok(())
    }

    fn fill(&mut self, runs: Vec<Fill>) -> Result<(), Failure> {
        let plan = self.plan;
        plan.fill(self.disk()?, &runs)
    }

    fn mask(&mut self, runs: Vec<Mask>) -> Result<(), Failure> {
        let plan = self.plan;
        plan.mask(self.disk()?, &runs)
    }

    fn extend(&mut self, size: u64) -> Result<(), Failure> {
        let plan = self.plan;
        plan.extend(self.disk()?, size)
    }

    fn act(&mut self, action: &str, arguments: &[Argument]) -> Result<(), Failure> {
        self.plan.act(action, arguments)
    }

    fn save(&mut self, new: &NewSnapshot) -> Result<(), Failure> {
        self.plan.save(new)
    }

    fn put_back(&mut self, mark: &str) -> Result<(), Failure> {
        self.plan.put_back(mark)
    }

    fn discard(&mut self, mark: &str) -> Result<(), Failure> {
        self.plan.discard(mark)
    }

    fn note(&mut self, message: &str) -> Result<(), Failure> {
        self.plan.note(message)
    }

    fn barrier(&mut self, title: &str) -> Result<(), Failure> {
        self.plan.barrier(title)
    }

    fn seal(&mut self, offset: u64, bits: u64) -> Result<(), Failure> {
        let plan = self.plan;
        plan.seal(self.disk()?, offset, bits)
    }
}

/// Makes a type that implements [`Backend`](crate::Backend) the component's backend.
///
/// On targets other than wasm it does nothing, so that the planner can be tested natively.
#[macro_export]
macro_rules! export_backend {
    ($backend:ty) => {
        #[cfg(target_arch = "wasm32")]
        mod snapslot_component {
            use super::*;
            use $crate::bindings::exports::snapslot::backend::backend as exports;

            struct Component;

            impl exports::Guest for Component {
                fn describe() -> exports::Description {
                    $crate::report_panics();
                    <$backend as $crate::Backend>::describe()
                }

                fn inspect(
                    target: &exports::Target,
                ) -> Result<exports::Facts, exports::Failure> {
                    $crate::report_panics();
                    <$backend as $crate::Backend>::inspect(&$crate::GuestTarget(target))
                }

                fn plan(
                    target: &exports::Target,
                    goal: exports::Goal,
                    plan: &exports::Draft,
                ) -> Result<(), exports::Failure> {
                    $crate::report_panics();
                    <$backend as $crate::Backend>::plan(
                        &$crate::GuestTarget(target),
                        &goal,
                        &mut $crate::GuestPlan::new(plan, target),
                    )
                }

                fn extents(
                    target: &exports::Target,
                    view: exports::View,
                    cursor: u64,
                    max: u32,
                ) -> Result<exports::ExtentPage, exports::Failure> {
                    $crate::report_panics();
                    <$backend as $crate::Backend>::extents(
                        &$crate::GuestTarget(target),
                        &view,
                        cursor,
                        max,
                    )
                }

                fn differences(
                    target: &exports::Target,
                    identity: String,
                    cursor: u64,
                    max: u32,
                ) -> Result<exports::StretchPage, exports::Failure> {
                    $crate::report_panics();
                    <$backend as $crate::Backend>::differences(
                        &$crate::GuestTarget(target),
                        &identity,
                        cursor,
                        max,
                    )
                }

                fn measure(
                    target: &exports::Target,
                    identity: String,
                    quick: bool,
                ) -> Result<exports::Change, exports::Failure> {
                    $crate::report_panics();
                    <$backend as $crate::Backend>::measure(
                        &$crate::GuestTarget(target),
                        &identity,
                        quick,
                    )
                }

                fn explain(command: String, answer: exports::Answer) -> exports::Failure {
                    $crate::report_panics();
                    <$backend as $crate::Backend>::explain(&command, &answer)
                }
            }

            $crate::bindings::export!(Component with_types_in $crate::bindings);
        }
    };
}
