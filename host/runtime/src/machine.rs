//! Wasm itself: compiling, linking, and one call in a store of its own.
//!
//! Knows no socket and no file: it is the same in this process and in one of its own.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasSelf, Linker, Resource};
use wasmtime::{Config, Engine, Store, UpdateDeadline};

use crate::bindings::types::{Failure, FailureKind};
use crate::bindings::{Storage, StoragePre};
use crate::call::{Call, Ended, Planned, Reply};
use crate::code::{self, Pages};
use crate::flaw::Flaw;
use crate::host::{Host, PlanHandle, Seen};
use crate::inert;
use crate::limits::Limits;
use crate::memory::HugeMemory;
use crate::offered::{BACKEND, CONTRACT, ERA, EXPORTS, has, has_interface};
use crate::outside::{Grants, World};

/// How often the clock of running plugins advances, and after how many steps the time is looked at.
const TICK: Duration = Duration::from_millis(10);
const TICKS_CHECK: u64 = 10;
/// Native stack that wasm code may use: deep recursion ends here.
const STACK_MAX: usize = 1 << 20;
/// Bytes that one call of the host may take in from the guest.
const HOSTCALL_BYTES_MAX: usize = 32 << 20;

/// What one machinery of wasm shares.
pub(crate) struct Machine {
    engine: Engine,
    linker: Linker<Host>,
    limits: Limits,
    ticker: OnceLock<()>,
}

/// A component that is ready to be called.
pub(crate) struct Loaded {
    pre: StoragePre<Host>,
    pub(crate) linked: Linked,
}

/// An instance that was made ready for one call.
pub(crate) struct Prepared {
    store: Store<Host>,
    storage: wasmtime::Result<Storage>,
}

/// What is left of a call. Giving its memory back takes time, and nobody needs to wait for it.
pub(crate) struct Remains(#[allow(dead_code)] Store<Host>);

/// What was seen of a component when it was linked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Linked {
    /// Its imports.
    pub(crate) imports: Vec<String>,
    /// The version of the contract that it speaks, as in `0.1.0`.
    pub(crate) contract: String,
}

impl Machine {
    pub(crate) fn new(limits: Limits) -> wasmtime::Result<Self> {
        let mut config = Config::new();
        config.wasm_component_model(true);
        config.epoch_interruption(true);
        config.max_wasm_stack(STACK_MAX);
        config.with_host_memory(Arc::new(HugeMemory));
        // The few kilobytes of a plugin's data are copied; only wasmtime's own memory can map them.
        config.memory_init_cow(false);
        if Pages::SUFFICE {
            config.with_custom_code_memory(Some(Arc::new(Pages)));
        }
        let engine = Engine::new(&config)?;
        let mut linker = Linker::new(&engine);
        Storage::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host)?;
        Ok(Machine { engine, linker, limits, ticker: OnceLock::new() })
    }

    /// Other limits, for calls from now on.
    pub(crate) fn limit(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// A number of all that compiled code depends on.
    pub(crate) fn key(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }

    /// Compiles a component. Gives also the code to keep, where it can be kept.
    pub(crate) fn compile(&self, bytes: &[u8]) -> Result<(Component, Option<Vec<u8>>), Flaw> {
        let component = Component::new(&self.engine, bytes)
            .map_err(|e| Flaw::Compile { why: in_a_line(&e) })?;
        let code = component.serialize();
        if let Err(error) = &code {
            tracing::debug!(%error, "a compiled plugin cannot be kept");
        }
        Ok((component, code.ok()))
    }

    /// A component from code that was compiled before; none if it is damaged.
    ///
    /// # Safety
    /// The code must be what `compile` of a machine with the same key gave: it will be run.
    pub(crate) unsafe fn revive(&self, code: &[u8]) -> Option<Component> {
        // SAFETY: as the caller promises.
        revived(|| unsafe { Component::deserialize(&self.engine, code) })
    }

    /// The same from a file of so many bytes, which is mapped. `None` also where that cannot be done.
    ///
    /// # Safety
    /// As above; and nobody may write the file as long as this process lives.
    pub(crate) unsafe fn revive_mapped(&self, file: &File, size: u64) -> Option<Component> {
        let code = code::map(file, size)?;
        // SAFETY: as the caller promises; the mapping is never taken away.
        let load = || unsafe { Component::deserialize_raw(&self.engine, code) };
        revived(load)
    }

    /// Checks what the component imports and exports, and links it.
    pub(crate) fn link(&self, component: &Component) -> Result<Loaded, Vec<Flaw>> {
        let imports: Vec<String> = (component.component_type().imports(&self.engine))
            .map(|(name, _)| name.to_owned())
            .collect();
        let mut flaws: Vec<Flaw> = imports.iter().filter_map(|name| refused_import(name)).collect();
        if flaws.is_empty() {
            flaws.extend(self.not_offered(component));
        }
        let contract = match self.exported(component) {
            Ok(contract) if flaws.is_empty() => contract,
            Ok(_) => return Err(flaws),
            Err(more) => {
                flaws.extend(more);
                return Err(flaws);
            }
        };
        let mut linker = self.linker.clone();
        let pre = inert::define(&self.engine, component, &mut linker)
            .and_then(|()| linker.instantiate_pre(component))
            .and_then(StoragePre::new);
        let pre = pre.map_err(|e| vec![Flaw::Link { why: in_a_line(&e) }])?;
        Ok(Loaded { pre, linked: Linked { imports, contract } })
    }

    /// Functions of the contract that a later version of it has and this one has not.
    fn not_offered(&self, component: &Component) -> Vec<Flaw> {
        let mut flaws = Vec::new();
        for (name, item) in component.component_type().imports(&self.engine) {
            let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
            if !name.starts_with(CONTRACT) {
                continue;
            }
            let mut newer = |what: String| flaws.push(Flaw::Newer { what });
            if !has_interface(name) {
                newer(name.to_owned());
                continue;
            }
            for (function, item) in instance.exports(&self.engine) {
                if matches!(item.ty, ComponentItem::ComponentFunc(_)) && !has(name, function) {
                    newer(format!("{name} {function}"));
                }
            }
        }
        flaws
    }

    /// The version of the contract whose interface it exports, whole.
    fn exported(&self, component: &Component) -> Result<String, Vec<Flaw>> {
        let mut theirs = Vec::new();
        for (name, item) in component.component_type().exports(&self.engine) {
            let Some(version) = name.strip_prefix(BACKEND) else { continue };
            let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
            if !version.starts_with(ERA) {
                theirs.push(Flaw::Version { theirs: name.to_owned() });
                continue;
            }
            let there: Vec<&str> = instance.exports(&self.engine).map(|(name, _)| name).collect();
            let lacking: Vec<Flaw> = (EXPORTS.iter().filter(|e| !there.contains(e)))
                .map(|e| Flaw::Export { export: format!("{name} {e}") })
                .collect();
            return if lacking.is_empty() { Ok(version.to_owned()) } else { Err(lacking) };
        }
        if theirs.is_empty() {
            theirs.push(Flaw::Export { export: format!("{BACKEND}{ERA}0") });
        }
        Err(theirs)
    }

    /// Starts the clock by which running plugins are ended. It lives as long as the engine.
    /// `each` is called at every tick.
    pub(crate) fn tick(&self, each: impl Fn() + Send + 'static) {
        self.ticker.get_or_init(|| {
            let engine = self.engine.weak();
            std::thread::spawn(move || {
                // Signals are for the thread that works, which may hold them back for a moment.
                let _ = nix::sys::signal::SigSet::all().thread_block();
                while let Some(engine) = engine.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    each();
                    std::thread::sleep(TICK);
                }
            });
        });
    }

    /// Makes an instance ready, in a store of its own.
    pub(crate) fn prepare(&self, loaded: &Loaded) -> Prepared {
        self.tick(|| ());
        let mut store = Store::new(&self.engine, Host::idle());
        store.limiter(|host| &mut host.holdings);
        let limits = self.limits;
        store.set_epoch_deadline(TICKS_CHECK);
        store.epoch_deadline_callback(move |context| {
            let host = context.data();
            // What the storage took to answer is not its fault; that it asked for ever is.
            let own = host.begun.elapsed().saturating_sub(host.waited + host.commanded);
            let most = limits.waiting;
            if own >= limits.computing {
                let most = limits.computing;
                return Err(wasmtime::Error::msg(format!("it computed for longer than {most:?}")));
            }
            if host.waited >= most {
                let why = format!("it had the host read for longer than {most:?}");
                return Err(wasmtime::Error::msg(why));
            }
            Ok(UpdateDeadline::Continue(TICKS_CHECK))
        });
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_max_component_handles(64);
        let storage = loaded.pre.instantiate(&mut store);
        Prepared { store, storage }
    }

    /// One call. After a trap nothing of its store is used again, but for the lines it logged.
    pub(crate) fn call(
        &self,
        prepared: Prepared,
        call: &Call,
        grants: Arc<Grants>,
        seen: Option<Seen>,
        world: Box<dyn World>,
    ) -> (Result<Reply<Planned>, Ended>, Box<dyn World>, Remains) {
        let Prepared { mut store, storage } = prepared;
        store.data_mut().begin(grants, seen, world);
        store.set_epoch_deadline(TICKS_CHECK);
        let result = storage.and_then(|s| ask(&s, &mut store, call));
        let mut host = std::mem::replace(store.data_mut(), Host::idle());
        host.print_rest();
        let (plan, acts) = (std::mem::take(&mut host.plan), std::mem::take(&mut host.acts));
        let ended = match result {
            Ok(Ok(reply)) => reply
                .try_map(|()| plan.finish().map(|plan| Planned { plan, acts }))
                .map_err(|e| Ended::Fault { cause: e.to_string(), trace: Vec::new() }),
            Ok(Err(failure)) if failure.kind == FailureKind::Internal => {
                Err(Ended::Fault { cause: failure.message, trace: Vec::new() })
            }
            Ok(Err(failure)) => Err(Ended::Refused(failure)),
            Err(error) => {
                let whole = format!("{error:#}");
                let cause = match error.downcast_ref::<wasmtime::Trap>() {
                    Some(trap) => trap.to_string(),
                    None => error.root_cause().to_string(),
                };
                // Where in the component: for its author, below the sentence.
                let lines = whole.lines().skip(1).map(str::trim);
                // Advice of wasmtime's own: its setting does not reach the process.
                let lines = lines.filter(|l| !l.starts_with("note: using"));
                let trace = lines.take(16).map(str::to_owned).collect();
                Err(Ended::Fault { cause, trace })
            }
        };
        (ended, host.world, Remains(store))
    }
}

/// A file damaged by the disk may even make the loader panic.
fn revived(load: impl FnOnce() -> wasmtime::Result<Component>) -> Option<Component> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)) {
        Ok(Ok(component)) => Some(component),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a kept plugin is compiled anew");
            None
        }
        Err(_) => {
            tracing::warn!("a kept plugin is damaged; it is compiled anew");
            None
        }
    }
}

/// Why an import is refused; none if it leads to the contract, or nowhere.
fn refused_import(name: &str) -> Option<Flaw> {
    if let Some(rest) = name.strip_prefix(CONTRACT) {
        let version = rest.split_once('@').map_or("", |(_, v)| v);
        let theirs = name.to_owned();
        return (!version.starts_with(ERA)).then_some(Flaw::Version { theirs });
    }
    (!inert::is_inert(name)).then(|| Flaw::Import { import: name.to_owned() })
}

/// An error of wasmtime's, whose words go over many lines.
fn in_a_line(error: &wasmtime::Error) -> String {
    let words = format!("{error:#}");
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|c| !c.is_control()).take(512).collect()
}

type Called<T> = wasmtime::Result<Result<T, Failure>>;

fn ask(storage: &Storage, store: &mut Store<Host>, call: &Call) -> Called<Reply<()>> {
    let backend = storage.snapslot_backend_backend();
    if let Call::Describe = call {
        return Ok(Ok(Reply::Described(backend.call_describe(store)?)));
    }
    if let Call::Explain { command, answer } = call {
        return Ok(Ok(Reply::Explained(backend.call_explain(store, command, answer)?)));
    }
    let target = store.data_mut().target()?;
    Ok(match call {
        Call::Inspect => backend.call_inspect(store, target)?.map(Reply::Facts),
        Call::Plan(goal) => {
            let plan = store.data_mut().table.push(PlanHandle)?;
            let plan = Resource::new_borrow(plan.rep());
            backend.call_plan(store, target, goal, plan)?.map(Reply::Planned)
        }
        Call::Extents { view, cursor, max } => {
            backend.call_extents(store, target, view, *cursor, *max)?.map(Reply::Page)
        }
        Call::Measure { identity, quick } => {
            backend.call_measure(store, target, identity, *quick)?.map(Reply::Change)
        }
        Call::Differences { identity, cursor, max } => {
            backend.call_differences(store, target, identity, *cursor, *max)?.map(Reply::Stretches)
        }
        Call::Describe | Call::Explain { .. } => {
            Err(Failure::new(FailureKind::Internal, "call", "it needs no volume"))
        }
    })
}
