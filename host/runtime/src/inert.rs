//! What languages' own runtimes import without a plugin asking for it: given, and leading nowhere.
//!
//! Printing goes into the plugin's log, the environment is empty, and the seed of hash tables is always the
//! same, so that a call that is made again goes as it went. All else ends the plugin when it is called.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{
    Component, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource, ResourceType,
};
use wasmtime::{Engine, StoreContextMut};

use crate::host::Host;
use crate::offered::CONTRACT;

/// What the Rust standard library and others import without a plugin calling it.
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
/// Of one write; who has more writes again.
const WRITE_MAX: u64 = 64 << 10;
/// Of no meaning: any would do, as long as it stays.
const SEED: (u64, u64) = (0x736e_6170_736c_6f74, 0x7365_6564_2066_6978);

/// Whether a plugin may import it without being given anything.
pub(crate) fn is_inert(import: &str) -> bool {
    INERT.iter().any(|inert| import.starts_with(inert))
}

/// Any resource of theirs. It holds nothing.
pub(crate) struct Nothing;

/// The contract of `wasi:io/streams`.
#[derive(ComponentType, Lift, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    #[allow(dead_code, reason = "part of the shape; nothing here ever fails")]
    LastOperationFailed(Resource<Nothing>),
    #[component(name = "closed")]
    #[allow(dead_code, reason = "part of the shape; nothing here is ever closed")]
    Closed,
}

type Streamed<T> = wasmtime::Result<(Result<T, StreamError>,)>;

/// Gives inert imports something to link to.
pub(crate) fn define(
    engine: &Engine,
    component: &Component,
    linker: &mut Linker<Host>,
) -> wasmtime::Result<()> {
    for (name, item) in component.component_type().imports(engine) {
        let ComponentItem::ComponentInstance(instance) = item.ty else { continue };
        if name.starts_with(CONTRACT) {
            continue;
        }
        let mut inert = linker.instance(name)?;
        for (export, item) in instance.exports(engine) {
            match item.ty {
                ComponentItem::ComponentFunc(_) => function(&mut inert, name, export)?,
                ComponentItem::Resource(_) => {
                    let dropped = |mut store: StoreContextMut<'_, Host>, rep| {
                        store.data_mut().table.delete(Resource::<Nothing>::new_own(rep))?;
                        Ok(())
                    };
                    inert.resource(export, ResourceType::host::<Nothing>(), dropped)?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn function(
    inert: &mut LinkerInstance<'_, Host>,
    name: &str,
    export: &str,
) -> wasmtime::Result<()> {
    type Store<'a> = StoreContextMut<'a, Host>;
    let made = |mut store: Store<'_>, (): ()| -> wasmtime::Result<(Resource<Nothing>,)> {
        Ok((store.data_mut().table.push(Nothing)?,))
    };
    let fine = |_: Store<'_>, (_,): (Resource<Nothing>,)| -> Streamed<()> { Ok((Ok(()),)) };
    let write = |mut store: Store<'_>, (_, bytes): (Resource<Nothing>, Vec<u8>)| -> Streamed<()> {
        store.data_mut().print(&bytes);
        Ok((Ok(()),))
    };
    match export {
        "get-stdout" | "get-stderr" => inert.func_wrap(export, made),
        "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush" => {
            inert.func_wrap(export, write)
        }
        "[method]output-stream.check-write" => inert
            .func_wrap(export, |_: Store<'_>, (_,): (Resource<Nothing>,)| -> Streamed<u64> {
                Ok((Ok(WRITE_MAX),))
            }),
        "[method]output-stream.flush" | "[method]output-stream.blocking-flush" => {
            inert.func_wrap(export, fine)
        }
        "[method]output-stream.subscribe" => {
            inert.func_wrap(export, |mut store: Store<'_>, (_,): (Resource<Nothing>,)| {
                Ok((store.data_mut().table.push(Nothing)?,))
            })
        }
        // All of them are ready at all times: nothing here waits for anything.
        "[method]pollable.ready" => {
            inert.func_wrap(export, |_: Store<'_>, (_,): (Resource<Nothing>,)| Ok((true,)))
        }
        "[method]pollable.block" => {
            inert.func_wrap(export, |_: Store<'_>, (_,): (Resource<Nothing>,)| Ok(()))
        }
        "poll" => inert.func_wrap(export, |_: Store<'_>, (of,): (Vec<Resource<Nothing>>,)| {
            let count = u32::try_from(of.len())?;
            Ok(((0..count).collect::<Vec<u32>>(),))
        }),
        "get-environment" => {
            inert.func_wrap(export, |_: Store<'_>, (): ()| Ok((Vec::<(String, String)>::new(),)))
        }
        "get-arguments" => {
            inert.func_wrap(export, |_: Store<'_>, (): ()| Ok((Vec::<String>::new(),)))
        }
        "initial-cwd" => inert.func_wrap(export, |_: Store<'_>, (): ()| Ok((None::<String>,))),
        "get-terminal-stdin" | "get-terminal-stdout" | "get-terminal-stderr" => {
            inert.func_wrap(export, |_: Store<'_>, (): ()| Ok((None::<Resource<Nothing>>,)))
        }
        "insecure-seed" => inert.func_wrap(export, |_: Store<'_>, (): ()| Ok((SEED,))),
        _ => {
            let called = format!("{name} {export}");
            inert.func_new(export, move |_, _, _, _| {
                Err(wasmtime::Error::msg(format!("it called {called}, which no plugin is given")))
            })
        }
    }
}
