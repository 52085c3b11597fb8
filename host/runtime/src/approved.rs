//! What a person approved of a plugin, against what it asks for.

use serde::{Deserialize, Serialize};

use crate::bindings::types::{CommandGrant, Description};

/// What a person was shown, and what of it they left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Approved {
    /// The description they were shown, whole.
    pub declared: Description,
    /// Names of grants they did not give, as [`Description::grant_names`] gives them.
    #[serde(default)]
    pub denied: Vec<String>,
}

impl Description {
    /// The name of each grant: `image disk`, `change of image disk`, `copies`, `query look`,
    /// `action destroy`.
    pub fn grant_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for image in &self.images {
            let role = image.role.word();
            names.push(format!("image {role}"));
            if image.changes {
                names.push(format!("change of image {role}"));
            }
        }
        names.extend(self.copies.iter().map(|_| "copies".to_owned()));
        names.extend(self.queries.iter().map(|q| format!("query {}", q.name)));
        names.extend(self.actions.iter().map(|a| format!("action {}", a.name)));
        names
    }

    /// The templates of those of these grants that are commands, by name.
    pub(crate) fn templates(&self, names: &[String]) -> Vec<(String, String)> {
        let of = |kind: &str, list: &[CommandGrant]| -> Vec<(String, String)> {
            let named = list.iter().map(|g| (format!("{kind} {}", g.name), g.template.join(" ")));
            named.filter(|(name, _)| names.contains(name)).collect()
        };
        [of("query", &self.queries), of("action", &self.actions)].concat()
    }

    /// Without the grants of these names.
    #[must_use]
    pub fn without(&self, denied: &[String]) -> Description {
        let is = |name: String| denied.contains(&name);
        let mut narrow = self.clone();
        narrow.images.retain_mut(|image| {
            let role = image.role.word();
            image.changes &= !is(format!("change of image {role}"));
            !is(format!("image {role}"))
        });
        narrow.copies = narrow.copies.filter(|_| !is("copies".to_owned()));
        narrow.queries.retain(|q| !is(format!("query {}", q.name)));
        narrow.actions.retain(|a| !is(format!("action {}", a.name)));
        narrow
    }

    /// The grants asked for here that are not, word for word, in what was shown before.
    pub fn more_than(&self, shown: &Description) -> Vec<String> {
        let mut more = Vec::new();
        for image in &self.images {
            if !shown.images.contains(image) {
                let one = Description { images: vec![image.clone()], ..Description::unknown() };
                more.extend(one.grant_names());
            }
        }
        if self.copies.is_some() && self.copies != shown.copies {
            more.push("copies".to_owned());
        }
        let new = |list: &[CommandGrant], of: &[CommandGrant]| -> Vec<String> {
            list.iter().filter(|g| !of.contains(g)).map(|g| g.name.clone()).collect()
        };
        more.extend(new(&self.queries, &shown.queries).iter().map(|n| format!("query {n}")));
        more.extend(new(&self.actions, &shown.actions).iter().map(|n| format!("action {n}")));
        more
    }
}

impl Approved {
    /// All that was shown.
    pub fn all(declared: Description) -> Approved {
        Approved { declared, denied: Vec::new() }
    }

    /// What it gets of what it asks for; the names of what was never shown, if there is such.
    pub fn effective(&self, asks: &Description) -> Result<Description, Vec<String>> {
        let mut more = asks.more_than(&self.declared);
        if (&asks.name, asks.place) != (&self.declared.name, self.declared.place)
            || asks.endings != self.declared.endings
        {
            more.push("another name, place or ending".to_owned());
        }
        match more.is_empty() {
            true => Ok(asks.without(&self.denied)),
            false => Err(more),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is not, word for word, what was approved is not had.

    use super::*;
    use crate::bindings::types::{ImageGrant, PlaceKind, Role};

    fn command(name: &str, word: &str) -> CommandGrant {
        CommandGrant {
            name: name.to_owned(),
            template: vec!["zfs".to_owned(), word.to_owned()],
            holes: Vec::new(),
            input: None,
            guard: None,
            deadline_seconds: 10,
            reason: "why not".to_owned(),
        }
    }

    fn asks() -> Description {
        Description {
            name: "x".to_owned(),
            place: PlaceKind::ZfsDataset,
            images: vec![ImageGrant { role: Role::Disk, changes: true, reason: "r".to_owned() }],
            copies: Some("c".to_owned()),
            queries: vec![command("look", "list")],
            actions: vec![command("make", "snapshot"), command("drop", "destroy")],
            ..Description::unknown()
        }
    }

    #[test]
    fn what_was_shown_is_had_but_for_what_was_denied() {
        let all = Approved::all(asks());
        assert_eq!(all.effective(&asks()), Ok(asks()));
        for name in asks().grant_names() {
            let some = Approved { denied: vec![name.clone()], ..Approved::all(asks()) };
            let had = some.effective(&asks()).expect("it was all shown").grant_names();
            assert!(!had.contains(&name), "{name}: {had:?}");
            let gone = if name == "image disk" { 2 } else { 1 };
            assert_eq!(had.len(), asks().grant_names().len() - gone, "{name}: {had:?}");
        }
        let none = Approved { denied: asks().grant_names(), ..Approved::all(asks()) };
        assert_eq!(none.effective(&asks()).expect("shown").grant_names(), Vec::<String>::new());
    }

    #[test]
    fn more_than_was_shown_is_told_by_name() {
        let shown = Approved::all(asks());
        let mut more = asks();
        more.actions.push(command("rollback", "rollback"));
        assert_eq!(shown.effective(&more), Err(vec!["action rollback".to_owned()]));
        let mut other = asks();
        other.actions[1].template.push("-r".to_owned());
        assert_eq!(shown.effective(&other), Err(vec!["action drop".to_owned()]));
        let mut reason = asks();
        reason.queries[0].reason = "another".to_owned();
        assert_eq!(shown.effective(&reason), Err(vec!["query look".to_owned()]));
        let renamed = Description { name: "y".to_owned(), ..asks() };
        assert!(shown.effective(&renamed).is_err());
        let fewer = Description { actions: Vec::new(), ..asks() };
        assert_eq!(shown.effective(&fewer), Ok(fewer.clone()));
    }
}
