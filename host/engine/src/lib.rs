//! The life of an operation: lock, inspect, policy, plan, check, commit, execute, record, recover.
