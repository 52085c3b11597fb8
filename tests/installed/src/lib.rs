//! A plugin that says of itself what its build is told: for tests of installing plugins.
//!
//! `SNAPSLOT_TEST_NAME`, `_ENDING`, `_SUMMARY` and `_ACTION`, set when it is compiled. The last is what
//! it asks for beyond copies: `changes` of its image, or the words of a command, which makes it one for
//! ZFS datasets. Its snapshots are whole copies that the host keeps.

use snapslot_plugin_sdk::{
    Backend, CommandGrant, Description, Facts, Failure, Goal, Grammar, Hole, ImageGrant, PlaceKind,
    Plan, Role, Target, copies,
};

const fn or(told: Option<&'static str>, otherwise: &'static str) -> &'static str {
    match told {
        Some(told) => told,
        None => otherwise,
    }
}

const NAME: &str = or(option_env!("SNAPSLOT_TEST_NAME"), "installed");
const ENDING: &str = or(option_env!("SNAPSLOT_TEST_ENDING"), "");
const ACTION: &str = or(option_env!("SNAPSLOT_TEST_ACTION"), "");
/// Whether it asks for changes of its image.
const CHANGES: bool = matches!(ACTION.as_bytes(), b"changes");
const SUMMARY: &str = or(option_env!("SNAPSLOT_TEST_SUMMARY"), "whole copies");

/// The plugin.
#[derive(Debug)]
pub struct Told;

impl Backend for Told {
    fn describe() -> Description {
        let words: Vec<String> = ACTION.split_whitespace().map(str::to_owned).collect();
        let commands = !CHANGES && !ACTION.is_empty();
        let hole = |name: &str, grammar| Hole { name: name.to_owned(), grammar };
        let action = CommandGrant {
            name: "more".to_owned(),
            holes: vec![hole("dataset", Grammar::ZfsDataset), hole("own", Grammar::ZfsOwn)],
            template: words,
            input: None,
            guard: None,
            deadline_seconds: 10,
            reason: "to have more".to_owned(),
        };
        Description {
            name: NAME.to_owned(),
            version: "1".to_owned(),
            summary: SUMMARY.to_owned(),
            endings: ENDING.split_whitespace().map(str::to_owned).collect(),
            place: if commands { PlaceKind::ZfsDataset } else { PlaceKind::Image },
            images: vec![ImageGrant {
                role: Role::Disk,
                changes: CHANGES,
                reason: "to see how large the disk is".to_owned(),
            }],
            copies: Some("the snapshot is a copy of the image".to_owned()),
            queries: Vec::new(),
            actions: if commands { vec![action] } else { Vec::new() },
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        Ok(Facts {
            identity: None,
            virtual_size: target.image(Role::Disk)?.size(),
            format: NAME.to_owned(),
            snapshots: copies::snapshots(target)?,
            findings: Vec::new(),
            unfinished: None,
        })
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        copies::plan(target, goal, plan)
    }
}

snapslot_plugin_sdk::export_backend!(crate::Told);
