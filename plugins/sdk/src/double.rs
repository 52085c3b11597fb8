//! A host for unit tests: images in memory, plans that are recorded and can be applied.

use crate::{
    Answer, Argument, Failure, FailureKind, Fill, Image, Mask, NewSnapshot, Plan, Role, SavedCopy,
    Saving, Target,
};

/// An image in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryImage(pub Vec<u8>);

impl Image for &MemoryImage {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(length as usize)?));
        range.and_then(|r| self.0.get(r)).map(<[u8]>::to_vec).ok_or_else(|| {
            Failure::new(FailureKind::Invalid, "read-outside", "the read reaches past the end")
        })
    }

    fn read_ranges(&self, ranges: &[(u64, u32)]) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        for (offset, length) in ranges {
            all.extend(self.read_at(*offset, *length)?);
        }
        Ok(all)
    }
}

/// A volume with one image in memory, and answers that were written down for its queries.
#[derive(Clone, Debug, Default)]
pub struct MemoryTarget {
    /// The place part of its locator.
    pub place: String,
    /// The disk.
    pub disk: MemoryImage,
    /// What each query answers, by its name; whatever its arguments are.
    pub answers: Vec<(String, Answer)>,
    /// The copies the host keeps.
    pub copies: Vec<SavedCopy>,
    /// What one more would take.
    pub saving: Option<Saving>,
}

impl MemoryTarget {
    /// A volume whose query of this name ends well with this output.
    #[must_use]
    pub fn answering(mut self, query: &str, output: impl Into<Vec<u8>>) -> Self {
        let answer = Answer { exit_code: 0, output: output.into(), errors: Vec::new() };
        self.answers.push((query.to_owned(), answer));
        self
    }
}

impl Target for MemoryTarget {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn image(&self, role: Role) -> Result<Box<dyn Image + '_>, Failure> {
        match role {
            Role::Disk => Ok(Box::new(&self.disk)),
            Role::Backing => {
                Err(Failure::new(FailureKind::NotGranted, "no-backing", "no backing file here"))
            }
        }
    }

    fn ask(&self, query: &str, _arguments: &[Argument]) -> Result<Answer, Failure> {
        let found = self.answers.iter().find(|(name, _)| name == query);
        found.map(|(_, answer)| answer.clone()).ok_or_else(|| {
            let what = format!("no query {query} here");
            Failure::new(FailureKind::NotGranted, "no-query", what)
        })
    }

    fn copies(&self) -> Result<Vec<SavedCopy>, Failure> {
        Ok(self.copies.clone())
    }

    fn saving(&self) -> Result<Saving, Failure> {
        let none = Failure::new(FailureKind::NotGranted, "no-copies", "no copies here");
        self.saving.ok_or(none)
    }
}

/// A step as recorded.
#[derive(Clone, Debug, PartialEq)]
pub enum Recorded {
    /// Bytes to write.
    Write(u64, Vec<u8>),
    /// A pattern to repeat.
    Fill(Fill),
    /// Bits to change.
    Mask(Mask),
    /// Growth.
    Extend(u64),
    /// An action.
    Act(String, Vec<Argument>),
    /// A copy to save.
    Save(NewSnapshot),
    /// A copy to put back.
    PutBack(String),
    /// A copy to remove.
    Discard(String),
    /// End of a phase.
    Barrier(String),
}

/// A plan that remembers its steps.
#[derive(Clone, Debug, Default)]
pub struct RecordedPlan {
    /// The steps, in order.
    pub steps: Vec<Recorded>,
    /// The seal: offset and bits.
    pub seal: Option<(u64, u64)>,
    /// Sentences for the person.
    pub notes: Vec<String>,
}

impl RecordedPlan {
    /// Carries the steps out on bytes in memory.
    pub fn apply(&self, image: &mut Vec<u8>) {
        let grow = |image: &mut Vec<u8>, end: usize| {
            if image.len() < end {
                image.resize(end, 0);
            }
        };
        for step in &self.steps {
            match step {
                Recorded::Write(offset, data) => {
                    let at = *offset as usize;
                    grow(image, at + data.len());
                    image[at..at + data.len()].copy_from_slice(data);
                }
                Recorded::Fill(run) => {
                    let at = run.offset as usize;
                    grow(image, at + run.length as usize);
                    for (i, byte) in image[at..at + run.length as usize].iter_mut().enumerate() {
                        *byte = run.pattern[i % run.pattern.len()];
                    }
                }
                Recorded::Mask(m) => {
                    for word in 0..m.count as usize {
                        let chosen =
                            m.select.is_empty() || m.select[word / 8] >> (word % 8) & 1 == 1;
                        if chosen {
                            let at = m.offset as usize + word * m.stride as usize;
                            let mut bytes = [0; 8];
                            bytes.copy_from_slice(&image[at..at + 8]);
                            let new = u64::from_be_bytes(bytes) & !m.clear | m.set;
                            image[at..at + 8].copy_from_slice(&new.to_be_bytes());
                        }
                    }
                }
                Recorded::Extend(size) => grow(image, *size as usize),
                Recorded::Act(..)
                | Recorded::Save(_)
                | Recorded::PutBack(_)
                | Recorded::Discard(_)
                | Recorded::Barrier(_) => {}
            }
        }
    }
}

impl Plan for RecordedPlan {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.steps.push(Recorded::Write(offset, data.to_vec()));
        Ok(())
    }

    fn fill(&mut self, runs: Vec<Fill>) -> Result<(), Failure> {
        self.steps.extend(runs.into_iter().map(Recorded::Fill));
        Ok(())
    }

    fn mask(&mut self, runs: Vec<Mask>) -> Result<(), Failure> {
        self.steps.extend(runs.into_iter().map(Recorded::Mask));
        Ok(())
    }

    fn extend(&mut self, size: u64) -> Result<(), Failure> {
        self.steps.push(Recorded::Extend(size));
        Ok(())
    }

    fn act(&mut self, action: &str, arguments: &[Argument]) -> Result<(), Failure> {
        self.steps.push(Recorded::Act(action.to_owned(), arguments.to_vec()));
        Ok(())
    }

    fn save(&mut self, new: &NewSnapshot) -> Result<(), Failure> {
        self.steps.push(Recorded::Save(new.clone()));
        Ok(())
    }

    fn put_back(&mut self, mark: &str) -> Result<(), Failure> {
        self.steps.push(Recorded::PutBack(mark.to_owned()));
        Ok(())
    }

    fn discard(&mut self, mark: &str) -> Result<(), Failure> {
        self.steps.push(Recorded::Discard(mark.to_owned()));
        Ok(())
    }

    fn note(&mut self, message: &str) -> Result<(), Failure> {
        self.notes.push(message.to_owned());
        Ok(())
    }

    fn barrier(&mut self, title: &str) -> Result<(), Failure> {
        if !matches!(self.steps.last(), None | Some(Recorded::Barrier(_))) {
            self.steps.push(Recorded::Barrier(title.to_owned()));
        }
        Ok(())
    }

    fn seal(&mut self, offset: u64, bits: u64) -> Result<(), Failure> {
        self.seal = Some((offset, bits));
        Ok(())
    }
}
