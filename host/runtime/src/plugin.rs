//! Loading plugins and calling them.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use snapslot_capture::Plan;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasSelf, Linker, Resource, ResourceType};
use wasmtime::{Config, Engine, Store, UpdateDeadline};

use crate::bindings::types::{
    Answer, Change, Description, ExtentPage, Facts, Failure, FailureKind, Goal, PlaceKind, View,
};
use crate::bindings::{Storage, StoragePre};
use crate::cache::Cache;
use crate::fault::{CallError, LoadError};
use crate::grants::effective;
use crate::host::{Grants, Host, PlanHandle, Sight};
use crate::memory::HugeMemory;

/// A component of plain code has 50 KiB to a few MiB; one with a language runtime some 20 MiB.
const COMPONENT_MAX: usize = 64 << 20;
/// How often the clock of running plugins advances, after how many steps the time is looked at,
/// and how much of it one call has.
const TICK: Duration = Duration::from_millis(10);
const TICKS_CHECK: u64 = 10;
const OWN_TIME_MAX: Duration = Duration::from_secs(60);
/// Native stack that wasm code may use: deep recursion ends here.
const STACK_MAX: usize = 1 << 20;
/// Bytes that one call of the host may take in from the guest.
const HOSTCALL_BYTES_MAX: usize = 32 << 20;
/// The era of the contract that this host speaks.
const ERA: &str = "0.1.";
const CONTRACT: &str = "snapslot:backend/";
/// What the Rust standard library and others import without a plugin calling it. Given, and
/// ends the plugin if used: none of it leads anywhere.
const INERT: [&str; 10] = [
    "wasi:cli/environment@",
    "wasi:cli/exit@",
    "wasi:cli/stdin@",
    "wasi:cli/stdout@",
    "wasi:cli/stderr@",
    "wasi:cli/terminal-",
    "wasi:io/error@",
    "wasi:io/poll@",
    "wasi:io/streams@",
    "wasi:random/insecure-seed@",
];

/// The machinery that all plugins share.
pub struct Runtime {
    engine: Engine,
    linker: Linker<Host>,
    cache: Cache,
    own_time_max: Duration,
    ticker: OnceLock<()>,
}

impl Runtime {
    /// A runtime that keeps compiled plugins in this directory, and lets one call compute for
    /// this long, at most as long as the contract says.
    pub fn new(cache: &Path, own_time_max: Option<Duration>) -> Result<Self, LoadError> {
        let unusable = |e: wasmtime::Error| LoadError::Unusable(format!("{e:#}"));
        let mut config = Config::new();
        config.wasm_component_model(true);
        config.epoch_interruption(true);
        config.max_wasm_stack(STACK_MAX);
        config.with_host_memory(Arc::new(HugeMemory));
        // The few kilobytes of a plugin's data are copied; only wasmtime's own memory can map them.
        config.memory_init_cow(false);
        let engine = Engine::new(&config).map_err(unusable)?;
        let mut linker = Linker::new(&engine);
        Storage::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host).map_err(unusable)?;
        Ok(Runtime {
            engine,
            linker,
            cache: Cache::open(cache),
            own_time_max: own_time_max.unwrap_or(OWN_TIME_MAX).min(OWN_TIME_MAX),
            ticker: OnceLock::new(),
        })
    }

    /// Loads a component and asks it what it is.
    pub fn load(&self, bytes: &[u8]) -> Result<Plugin<'_>, LoadError> {
        if bytes.len() > COMPONENT_MAX {
            return Err(LoadError::TooLarge { size: bytes.len(), limit: COMPONENT_MAX });
        }
        let unusable = |e: wasmtime::Error| LoadError::Unusable(format!("{e:#}"));
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        let component = self.cache.component(&self.engine, &digest, bytes).map_err(unusable)?;
        let imports = self.check_imports(&component)?;
        let mut linker = self.linker.clone();
        self.define_inert(&component, &mut linker).map_err(unusable)?;
        let pre = linker.instantiate_pre(&component).and_then(StoragePre::new).map_err(unusable)?;
        let mut plugin = Plugin {
            runtime: self,
            pre,
            digest,
            imports,
            description: Description {
                name: "new plugin".to_owned(),
                version: String::new(),
                summary: String::new(),
                endings: Vec::new(),
                place: PlaceKind::Image,
                images: Vec::new(),
                copies: None,
                queries: Vec::new(),
                actions: Vec::new(),
            },
            grants: Arc::new(Grants::default()),
        };
        let described = plugin
            .call("describe", |storage, store, _| {
                storage.snapslot_backend_backend().call_describe(store).map(Ok)
            })
            .map_err(|e| LoadError::Unusable(e.to_string()))?;
        plugin.description = validated(described.0)?;
        plugin.grants = Arc::new(effective(&plugin.description)?);
        Ok(plugin)
    }

    fn check_imports(&self, component: &Component) -> Result<Vec<String>, LoadError> {
        let mut imports = Vec::new();
        for (name, _) in component.component_type().imports(&self.engine) {
            if let Some(rest) = name.strip_prefix(CONTRACT) {
                let version = rest.split_once('@').map_or("", |(_, v)| v);
                if !version.starts_with(ERA) {
                    return Err(LoadError::Version { theirs: name.to_owned() });
                }
            } else if !INERT.iter().any(|inert| name.starts_with(inert)) {
                return Err(LoadError::Import { import: name.to_owned() });
            }
            imports.push(name.to_owned());
        }
        Ok(imports)
    }

    /// Gives inert imports something to link to: functions that end the plugin, resources of
    /// which there is never one.
    fn define_inert(
        &self,
        component: &Component,
        linker: &mut Linker<Host>,
    ) -> wasmtime::Result<()> {
        struct Nothing;
        for (name, item) in component.component_type().imports(&self.engine) {
            let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
            if name.starts_with(CONTRACT) {
                continue;
            }
            let mut inert = linker.instance(name)?;
            for (export, item) in instance.exports(&self.engine) {
                match item.ty {
                    ComponentItem::ComponentFunc(_) => {
                        let called = format!("{name} {export}");
                        inert.func_new(export, move |_, _, _, _| {
                            Err(wasmtime::Error::msg(format!(
                                "it called {called}, which no plugin is given"
                            )))
                        })?;
                    }
                    ComponentItem::Resource(_) => {
                        inert.resource(export, ResourceType::host::<Nothing>(), |_, _| Ok(()))?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Starts the clock by which running plugins are ended. It lives as long as the engine.
    fn tick(&self) {
        self.ticker.get_or_init(|| {
            let engine = self.engine.weak();
            std::thread::spawn(move || {
                // Signals are for the thread that works, which may hold them back for a moment.
                let _ = nix::sys::signal::SigSet::all().thread_block();
                while let Some(engine) = engine.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    std::thread::sleep(TICK);
                }
            });
        });
    }
}

fn validated(d: Description) -> Result<Description, LoadError> {
    let name_ok = (1..=32).contains(&d.name.len())
        && d.name.starts_with(|c: char| c.is_ascii_lowercase())
        && d.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let text_ok = |t: &String| t.len() <= 4096 && !t.chars().any(char::is_control);
    let reasons = (d.images.iter().map(|i| &i.reason))
        .chain(d.queries.iter().chain(&d.actions).map(|c| &c.reason))
        .chain(&d.copies);
    let texts_ok =
        d.endings.iter().chain(reasons).all(text_ok) && text_ok(&d.version) && text_ok(&d.summary);
    let lists_ok = d.endings.len() <= 8
        && d.images.len() <= 8
        && d.queries.len() <= 64
        && d.actions.len() <= 64;
    if name_ok && texts_ok && lists_ok {
        Ok(d)
    } else {
        Err(LoadError::Unusable("its description breaks the contract's limits".to_owned()))
    }
}

/// A loaded plugin.
pub struct Plugin<'r> {
    runtime: &'r Runtime,
    pre: StoragePre<Host>,
    digest: String,
    imports: Vec<String>,
    description: Description,
    grants: Arc<Grants>,
}

impl Plugin<'_> {
    /// What it says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The component's sha256, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What it imports, for people who ask.
    pub fn imports(&self) -> &[String] {
        &self.imports
    }

    /// Looks at the volume.
    pub fn inspect(&self, sight: &Sight) -> Result<Facts, CallError> {
        let (facts, _) = self.call("inspect", |storage, store, _| {
            let target = store.data_mut().target(sight)?;
            storage.snapslot_backend_backend().call_inspect(store, target)
        })?;
        if facts.snapshots.len() > 65_536 || facts.findings.len() > 64 {
            return Err(self.fault("inspect", "it reports more than the contract allows", vec![]));
        }
        Ok(facts)
    }

    /// Asks for the steps to the goal.
    pub fn plan(&self, sight: &Sight, goal: &Goal) -> Result<Plan, CallError> {
        let ((), host) = self.call("plan", |storage, store, _| {
            let target = store.data_mut().target(sight)?;
            let plan = store.data_mut().table.push(PlanHandle)?;
            let plan = Resource::new_borrow(plan.rep());
            storage.snapslot_backend_backend().call_plan(store, target, goal, plan)
        })?;
        let lines = host.lines;
        host.plan.finish().map_err(|e| self.fault("plan", &e.to_string(), lines))
    }

    /// Lists content.
    pub fn extents(
        &self,
        sight: &Sight,
        view: &View,
        cursor: u64,
        max: u32,
    ) -> Result<ExtentPage, CallError> {
        let (page, _) = self.call("extents", |storage, store, _| {
            let target = store.data_mut().target(sight)?;
            storage.snapslot_backend_backend().call_extents(store, target, view, cursor, max)
        })?;
        let mut at = cursor;
        for extent in &page.extents {
            let end = extent.start.checked_add(extent.length);
            if extent.length == 0 || (at != cursor && extent.start != at) || extent.start > at {
                return Err(self.fault("extents", "its extents have gaps or overlap", vec![]));
            }
            at = end.ok_or_else(|| self.fault("extents", "an extent overflows", vec![]))?;
        }
        if page.extents.len() > max as usize || page.next.is_some_and(|n| n != at || n <= cursor) {
            return Err(self.fault("extents", "its page is longer or goes on elsewhere", vec![]));
        }
        Ok(page)
    }

    /// Measures change.
    pub fn measure(&self, sight: &Sight, identity: &str) -> Result<Change, CallError> {
        let (change, _) = self.call("measure", |storage, store, _| {
            let target = store.data_mut().target(sight)?;
            storage.snapslot_backend_backend().call_measure(store, target, identity)
        })?;
        Ok(change)
    }

    /// Puts into the contract's words what a command said when it failed. A plugin that cannot
    /// is passed over: the command's own words are at hand.
    pub fn explain(&self, command: &str, answer: &Answer) -> Option<Failure> {
        let explained = self.call("explain", |storage, store, _| {
            storage.snapslot_backend_backend().call_explain(store, command, answer).map(Ok)
        });
        explained.ok().map(|(failure, _)| cleaned(failure))
    }

    fn fault(&self, call: &'static str, cause: &str, log: Vec<String>) -> CallError {
        CallError::Fault {
            plugin: self.description.name.clone(),
            call,
            cause: cause.to_owned(),
            log,
        }
    }

    /// One call in a store of its own. After a trap nothing of that store is used again, but
    /// for the lines it logged.
    fn call<T>(
        &self,
        call: &'static str,
        f: impl FnOnce(&Storage, &mut Store<Host>, &str) -> wasmtime::Result<Result<T, Failure>>,
    ) -> Result<(T, Host), CallError> {
        self.runtime.tick();
        let mut store = Store::new(
            &self.runtime.engine,
            Host::new(&self.description.name, self.grants.clone()),
        );
        store.limiter(|host| &mut host.limits);
        // Sixty seconds of its own: what the storage took to answer is not its fault.
        let begun = Instant::now();
        let own_time_max = self.runtime.own_time_max;
        store.set_epoch_deadline(TICKS_CHECK);
        store.epoch_deadline_callback(move |context| {
            let own = begun.elapsed().saturating_sub(context.data().reading);
            if own >= own_time_max {
                return Err(wasmtime::Trap::Interrupt.into());
            }
            Ok(UpdateDeadline::Continue(TICKS_CHECK))
        });
        store.set_hostcall_fuel(HOSTCALL_BYTES_MAX);
        store.set_max_component_handles(64);
        let result = self.pre.instantiate(&mut store).and_then(|s| f(&s, &mut store, call));
        let mut host = store.into_data();
        match result {
            Ok(Ok(value)) => Ok((value, host)),
            Ok(Err(failure)) if failure.kind == FailureKind::Internal => {
                Err(self.fault(call, &cleaned(failure).message, host.lines))
            }
            Ok(Err(failure)) => Err(CallError::Refused(cleaned(failure))),
            Err(error) => {
                let whole = format!("{error:#}");
                let cause = match error.downcast_ref::<wasmtime::Trap>() {
                    Some(wasmtime::Trap::Interrupt) => {
                        format!("it computed for longer than {:?}", self.runtime.own_time_max)
                    }
                    Some(trap) => trap.to_string(),
                    None => error.root_cause().to_string(),
                };
                // Where in the component: for its author, below the sentence.
                host.lines.extend(whole.lines().skip(1).take(16).map(|l| l.trim().to_owned()));
                Err(self.fault(call, &cause, host.lines))
            }
        }
    }
}

/// A failure as a plugin worded it, fit to be shown.
fn cleaned(failure: Failure) -> Failure {
    let clean = |text: &str, max: usize| -> String {
        text.chars().filter(|c| !c.is_control()).take(max).collect()
    };
    Failure {
        kind: failure.kind,
        code: failure
            .code
            .chars()
            .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
            .take(64)
            .collect(),
        message: clean(&failure.message, 4096),
        data: (failure.data.iter().take(16))
            .map(|(key, value)| (clean(key, 64), clean(value, 4096)))
            .collect(),
    }
}
