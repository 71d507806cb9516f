//! Lines of an export become a ledger's: all of them in one transaction, or none.
//!
//! What the ledger has already stays where it is newer, so that the same lines twice change nothing. Where the
//! two say that one thing is another's (a context's thread, a request's turn), nothing is written, unless
//! the import is to win. Nothing is ever removed that the import does not name.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::path::Path;

use redb::{ReadableTable as _, Table};

use crate::model::id::TurnId;
use crate::registry::ledger::disk::FileDisk;
use crate::registry::ledger::fault::Fault;
use crate::registry::ledger::file::FileFault;
use crate::registry::ledger::key::{self, TurnPart};
use crate::registry::ledger::lines::{Counts, Entry, LineFault, LineReader};
use crate::registry::ledger::open::{self, Versions};
use crate::registry::ledger::read::{Piece, Pieces};
use crate::registry::ledger::record::Record;
use crate::registry::ledger::store::{self, RECORDS, caught};
use crate::registry::ledger::{Durability, Kept, KeptTurn};

/// Most conflicts that are told one by one.
const TOLD: usize = 20;

/// What to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct ImportRules {
    /// The import wins over what the ledger has.
    pub(crate) replace: bool,
    /// Of lines that are not whole, those that are.
    pub(crate) partial: bool,
}

/// What an import has done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Imported {
    /// New in the ledger.
    pub(crate) added: Counts,
    /// In place of what the ledger had.
    pub(crate) replaced: Counts,
    /// What the ledger had so, or newer.
    pub(crate) kept: Counts,
    /// What was left out of lines that are not whole.
    pub(crate) faults: Vec<LineFault>,
}

/// Why nothing was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ImportFault {
    File(FileFault),
    /// What is wrong with the lines; the first faults of all.
    Lines(Vec<LineFault>),
    /// Where the ledger says otherwise, for the person who reads it; the first of so many.
    Conflicts(Vec<String>, u64),
}

impl From<Fault> for ImportFault {
    fn from(fault: Fault) -> ImportFault {
        ImportFault::File(fault.into())
    }
}

/// Imports lines into the file, which is made if it is not there.
///
/// # Errors
/// [`ImportFault`]; the ledger has what it had.
pub(crate) fn import(
    path: &Path,
    lines: impl BufRead,
    rules: ImportRules,
) -> Result<Imported, ImportFault> {
    let is_new =
        path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    // Held until the end, with its lock.
    let mut disk = FileDisk::new(path.to_owned(), Durability::Power);
    let imported = import_into(&mut disk, lines, rules);
    if is_new && imported.is_err() {
        // Made by this import, and still locked: nobody else has begun with it.
        let _ = std::fs::remove_file(path);
    }
    imported
}

fn import_into(
    disk: &mut FileDisk,
    lines: impl BufRead,
    rules: ImportRules,
) -> Result<Imported, ImportFault> {
    let database = open::open(disk, Versions::THIS)?.begin(None)?;
    let imported = caught(|| {
        let transaction = database.begin_write()?;
        let taken = {
            let records = transaction.open_table(RECORDS)?;
            let mut import = Import::new(records, rules)?;
            import.all(lines)?;
            import.end()
        };
        match taken {
            Ok(imported) => {
                transaction.commit()?;
                Ok(Ok(imported))
            }
            Err(fault) => {
                transaction.abort()?;
                Ok(Err(fault))
            }
        }
    })?;
    // Whole and clean for whoever opens it next.
    caught(|| Ok(database.close()?))?;
    imported
}

type Records<'a> = Table<'a, &'static [u8], &'static [u8]>;

/// What the ledger has of something that is imported.
enum Has {
    Nothing,
    /// The same, or something newer.
    Enough,
    Less,
    /// It is another's, of whom this is told.
    Other(String),
}

struct Import<'a> {
    records: Records<'a>,
    rules: ImportRules,
    /// Whose each request id is.
    requests: HashMap<String, TurnId>,
    done: Imported,
    conflicts: Vec<String>,
    conflicts_in_all: u64,
}

impl<'a> Import<'a> {
    fn new(records: Records<'a>, rules: ImportRules) -> Result<Import<'a>, Fault> {
        let mut requests = HashMap::new();
        let turns = records.range::<&[u8]>(&[key::TURN][..]..&[key::TURN + 1][..])?;
        let turns = turns.map(|read| {
            let (key, value) = read?;
            store::decode(key.value(), value.value())
        });
        for piece in Pieces::of(turns) {
            if let Piece::Kept(Kept::Turn(turn)) = piece? {
                let KeptTurn { turn_id, requests: ids, .. } = *turn;
                requests.extend(ids.into_iter().map(|request| (request.id, turn_id.clone())));
            }
        }
        let (done, conflicts) = (Imported::default(), Vec::new());
        Ok(Import { records, rules, requests, done, conflicts, conflicts_in_all: 0 })
    }

    fn all(&mut self, lines: impl BufRead) -> Result<(), Fault> {
        for line in LineReader::new(lines) {
            match line {
                Ok(entry) => self.take(entry)?,
                Err(fault) => {
                    let is_fatal = fault.is_fatal;
                    self.done.faults.push(fault);
                    if is_fatal || (!self.rules.partial && self.done.faults.len() == TOLD) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// What was done, if that may stay.
    fn end(self) -> Result<Imported, ImportFault> {
        let Import { done, rules, conflicts, conflicts_in_all, .. } = self;
        let has_something = done.added.total() + done.replaced.total() + done.kept.total() > 0;
        let is_fatal = done.faults.iter().any(|fault| fault.is_fatal);
        if !done.faults.is_empty() && (is_fatal || !rules.partial || !has_something) {
            return Err(ImportFault::Lines(done.faults));
        }
        if conflicts_in_all > 0 {
            return Err(ImportFault::Conflicts(conflicts, conflicts_in_all));
        }
        Ok(done)
    }

    fn take(&mut self, entry: Entry) -> Result<(), Fault> {
        let has = self.has(&entry)?;
        let has = match has {
            Has::Other(_) if self.rules.replace => Has::Less,
            has => has,
        };
        match has {
            Has::Nothing => self.done.added.count(&entry),
            Has::Less => self.done.replaced.count(&entry),
            Has::Enough => {
                self.done.kept.count(&entry);
                return Ok(());
            }
            Has::Other(whose) => {
                self.conflicts_in_all += 1;
                if self.conflicts.len() < TOLD {
                    self.conflicts.push(whose);
                }
                return Ok(());
            }
        }
        if let Entry::Turn(turn) = &entry {
            self.claim(turn)?;
        }
        self.put(entry)
    }

    fn put(&mut self, entry: Entry) -> Result<(), Fault> {
        let mut operations = Vec::new();
        entry.append_operations(&mut operations);
        for operation in &operations {
            store::apply(&mut self.records, operation)?;
        }
        Ok(())
    }

    /// Its request ids are this turn's now, and no other's.
    fn claim(&mut self, turn: &KeptTurn) -> Result<(), Fault> {
        for request in &turn.requests {
            let before = self.requests.insert(request.id.clone(), turn.turn_id.clone());
            let Some(other) = before.filter(|before| *before != turn.turn_id) else { continue };
            let Some(mut kept) = self.turn(&other)? else { continue };
            kept.requests.retain(|of_other| of_other.id != request.id);
            self.put(Entry::Turn(Box::new(kept)))?;
        }
        Ok(())
    }

    fn has(&self, entry: &Entry) -> Result<Has, Fault> {
        let replace = self.rules.replace;
        Ok(match entry {
            Entry::Context(kept) => {
                let Some(Record::Binding(has)) = self.get(&key::context(&kept.key))? else {
                    return Ok(Has::Nothing);
                };
                let (import, has) = (&kept.binding, &has.binding);
                let later = (import.updated_at, import.used_at) > (has.updated_at, has.used_at);
                if import.thread_id != has.thread_id {
                    Has::Other(format!(
                        "context {:?} under {:?}: bound to thread {} there, to {} in the import",
                        kept.key.context_id, kept.key.thread_key, has.thread_id, import.thread_id
                    ))
                } else if import == has || !(later || replace) {
                    Has::Enough
                } else {
                    Has::Less
                }
            }
            Entry::EvictedContext(mark) => {
                // Only what is not bound any more was evicted.
                if self.get(&key::context(&mark.key))?.is_some() {
                    return Ok(Has::Enough);
                }
                match self.get(&key::mark(&mark.key))? {
                    Some(Record::Mark(has)) if *mark == has => Has::Enough,
                    Some(Record::Mark(has)) if has.evicted_at >= mark.evicted_at && !replace => {
                        Has::Enough
                    }
                    Some(_) => Has::Less,
                    None => Has::Nothing,
                }
            }
            Entry::Thread(thread_id, facts) => match self.get(&key::thread(thread_id))? {
                Some(Record::Facts(_, has)) if *has == *facts => Has::Enough,
                Some(Record::Facts(_, has)) if has.at >= facts.at && !replace => Has::Enough,
                Some(_) => Has::Less,
                None => Has::Nothing,
            },
            Entry::Turn(turn) => {
                let whose = turn.requests.iter().find_map(|request| {
                    let other = self.requests.get(&request.id)?;
                    (*other != turn.turn_id).then(|| {
                        format!(
                            "request_id {:?}: that of turn {other} there, of turn {} in the import",
                            request.id, turn.turn_id
                        )
                    })
                });
                match (self.turn(&turn.turn_id)?, whose) {
                    (Some(has), _) if has == **turn => Has::Enough,
                    (Some(has), _) if !replace && (has.end.is_some() || turn.end.is_none()) => {
                        Has::Enough
                    }
                    (_, Some(whose)) => Has::Other(whose),
                    (Some(_), None) => Has::Less,
                    (None, None) => Has::Nothing,
                }
            }
            Entry::Directory(directory, latest) => match self.get(&key::directory(directory))? {
                Some(Record::Directory(_, has)) if has == *latest => Has::Enough,
                Some(Record::Directory(_, has)) if has.at >= latest.at && !replace => Has::Enough,
                Some(_) => Has::Less,
                None => Has::Nothing,
            },
            Entry::Tokens(tokens) => match self.get(&[key::TOKENS])? {
                Some(Record::Tokens(has)) if has == *tokens => Has::Enough,
                Some(Record::Tokens(has)) if has >= *tokens && !replace => Has::Enough,
                Some(_) => Has::Less,
                None => Has::Nothing,
            },
        })
    }

    fn get(&self, key: &[u8]) -> Result<Option<Record>, Fault> {
        match self.records.get(key)? {
            Some(value) => store::decode(key, value.value()).map(Some),
            None => Ok(None),
        }
    }

    fn turn(&self, turn_id: &TurnId) -> Result<Option<KeptTurn>, Fault> {
        let start = key::turn_part(turn_id, TurnPart::Start);
        if self.records.get(&start[..])?.is_none() {
            return Ok(None);
        }
        let all = key::turn(turn_id);
        let parts = self.records.range::<&[u8]>(&all[..]..&store::end_of(&all)[..])?;
        let parts = parts.map(|read| {
            let (key, value) = read?;
            store::decode(key.value(), value.value())
        });
        match Pieces::of(parts).next().transpose()? {
            Some(Piece::Kept(Kept::Turn(turn))) => Ok(Some(*turn)),
            Some(_) | None => Ok(None),
        }
    }
}
