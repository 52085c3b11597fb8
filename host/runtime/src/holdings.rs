//! What one call of a plugin may hold, all its memories and tables together.

use wasmtime::ResourceLimiter;

/// Linear memory: the counts of one window (64 MiB), tables, and room for other planners.
pub(crate) const MEMORY_MAX: usize = 512 << 20;
/// Elements of tables: each a pointer of the host's.
const ELEMENTS_MAX: usize = 100_000;
const INSTANCES_MAX: usize = 32;
const TABLES_MAX: usize = 32;
const MEMORIES_MAX: usize = 4;

/// Counts what is held.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    memory: usize,
    elements: usize,
}

/// Lets something grow if its own limit and that of all together allow it. Who is past the latter is ended
/// rather than told: hardly any language's runtime goes on after that.
fn grow(
    held: &mut usize,
    (current, desired): (usize, usize),
    own: Option<usize>,
    most: usize,
    what: impl FnOnce() -> String,
) -> wasmtime::Result<bool> {
    if own.is_some_and(|own| desired > own) {
        return Ok(false);
    }
    let sum = desired.checked_sub(current).and_then(|more| held.checked_add(more));
    *held = sum.filter(|sum| *sum <= most).ok_or_else(|| wasmtime::Error::msg(what()))?;
    Ok(true)
}

impl ResourceLimiter for Holdings {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let what = || format!("it asked for more than {} MiB of memory", MEMORY_MAX >> 20);
        grow(&mut self.memory, (current, desired), maximum, MEMORY_MAX, what)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let what = || format!("it asked for tables of more than {ELEMENTS_MAX} elements");
        grow(&mut self.elements, (current, desired), maximum, ELEMENTS_MAX, what)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    //! Goal: the limit is one for all that is held, whatever it is divided into.

    use super::*;

    #[test]
    fn memories_and_tables_have_one_limit_together() {
        let mut held = Holdings::default();
        // Story: each of four memories could have the whole limit.
        for _ in 0..4 {
            assert!(held.memory_growing(0, MEMORY_MAX / 4, None).expect("room"));
        }
        let error = held.memory_growing(MEMORY_MAX / 4, MEMORY_MAX / 4 + 65_536, None);
        assert!(error.expect_err("too much").to_string().contains("512 MiB"));
        assert!(!held.memory_growing(0, 131_072, Some(65_536)).expect("its own limit"));
        for _ in 0..10 {
            assert!(held.table_growing(0, ELEMENTS_MAX / 10, None).expect("room"));
        }
        assert!(held.table_growing(0, 1, None).is_err());
    }
}
