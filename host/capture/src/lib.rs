//! Plan, journal and executor: what a plan is, how it is made durable, how it is carried out.
