//! Which thread descends from which, and what runs on each: what one worker has told of it.
//!
//! Pure: it is told what the worker tells, and answers who a message belongs to and
//! whether a turn was there before. It knows nothing of turns of ours; the worker's routes do. What it
//! keeps of a thread goes when the worker unloads the thread, and all of it has a bound.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::app_server::decode::News;
use crate::app_server::message::Told;
use crate::model::event::{Event, ItemCompleted, ItemStarted, Usage};
use crate::model::item::{ItemKind, SubAgent};

/// How many of the last begun turns are remembered, to know a turn that was there before.
const BEGUN: usize = 1024;

/// Up to how many threads anything is remembered of that the worker has not unloaded.
const REMEMBERED: usize = 10_000;

/// Sub-agents may have sub-agents; a chain that is longer is none.
const DEEPEST: usize = 64;

/// What a worker has told of its threads.
#[derive(Debug, Default)]
pub(crate) struct Ownership {
    parents: HashMap<String, String>,
    // Codex's id of the turn that runs on a thread.
    running: HashMap<String, String>,
    // Turns with their threads, in the order of their begin.
    begun: VecDeque<(String, String)>,
    begun_before_those: u64,
    // The names under which turns of ours were started, with their threads.
    roots: VecDeque<(String, String)>,
    // The threads whose goal Codex goes on with by itself.
    goals: HashSet<String>,
    counts: HashMap<String, Usage>,
    // Turns that were stopped because they were nobody's, by the thread that is told.
    stopped: HashMap<String, Vec<String>>,
}

/// What ran when a turn was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    running: Option<String>,
    begun: u64,
}

impl Ownership {
    /// Whether there is anything in the news to take in.
    pub(crate) fn is_touched_by(news: &News) -> bool {
        match news {
            News::ThreadStarted { .. }
            | News::ThreadUnloaded
            | News::ThreadIdle
            | News::TurnStarted { .. }
            | News::TurnEnded(_)
            | News::Goal { .. }
            | News::TokenUsage { .. } => true,
            News::Event(event) => agents_of(event).is_some(),
            News::Plan(_)
            | News::RequestResolved(_)
            | News::McpServer { .. }
            | News::Settings(_)
            | News::Other => false,
        }
    }

    /// Takes in what is told.
    pub(crate) fn observe(&mut self, Told { scope, news, .. }: &Told) {
        if let News::ThreadStarted { thread_id, parent: Some(parent) } = news {
            self.adopt(thread_id, parent);
        }
        if let Some(thread_id) = &scope.thread_id {
            self.observe_thread(thread_id, scope.turn_id.as_deref(), news);
        }
        self.stay_small();
    }

    fn observe_thread(&mut self, thread_id: &str, turn_id: Option<&str>, news: &News) {
        match news {
            News::Event(event) => {
                let Some(told) = agents_of(event) else { return };
                let sender = &told.sender_thread_id;
                let parent = if sender.is_empty() { thread_id } else { sender };
                for agent in &told.agents {
                    self.adopt(&agent.thread_id, parent);
                }
            }
            News::TurnStarted { root_turn_id } => {
                let Some(turn_id) = turn_id else { return };
                let root = root_turn_id.as_ref().and_then(|root| self.thread_of(root));
                if let Some(root) = root.filter(|root| root != thread_id)
                    && !self.parents.contains_key(thread_id)
                {
                    self.adopt(thread_id, &root);
                }
                self.running.insert(thread_id.to_owned(), turn_id.to_owned());
                self.begun.push_back((turn_id.to_owned(), thread_id.to_owned()));
                if self.begun.len() > BEGUN {
                    self.begun.pop_front();
                    self.begun_before_those += 1;
                }
            }
            News::TurnEnded(_) | News::ThreadIdle => {
                self.running.remove(thread_id);
            }
            News::Goal { is_active: true } => {
                self.goals.insert(thread_id.to_owned());
            }
            News::Goal { is_active: false } => {
                self.goals.remove(thread_id);
            }
            News::TokenUsage { total, .. } => {
                self.counts.insert(thread_id.to_owned(), *total);
            }
            News::ThreadUnloaded => {
                self.parents.remove(thread_id);
                self.running.remove(thread_id);
                self.goals.remove(thread_id);
            }
            News::ThreadStarted { .. }
            | News::Plan(_)
            | News::RequestResolved(_)
            | News::McpServer { .. }
            | News::Settings(_)
            | News::Other => {}
        }
    }

    /// Notes that a thread is another one's sub-agent.
    pub(crate) fn adopt(&mut self, child: &str, parent: &str) {
        // Codex tells of a sub-agent's messages to its elders, too.
        if child != parent && !self.ancestors(parent).any(|elder| elder == child) {
            self.parents.insert(child.to_owned(), parent.to_owned());
        }
    }

    /// The thread's parent, its parent's parent, and so on.
    pub(crate) fn ancestors<'a>(&'a self, thread_id: &'a str) -> impl Iterator<Item = &'a str> {
        let up = |thread: &&'a str| self.parents.get(*thread).map(String::as_str);
        std::iter::successors(self.parents.get(thread_id).map(String::as_str), up).take(DEEPEST)
    }

    /// The thread at the head of the thread's line: itself, where it is nobody's sub-agent.
    pub(crate) fn head_of<'a>(&'a self, thread_id: &'a str) -> &'a str {
        self.ancestors(thread_id).last().unwrap_or(thread_id)
    }

    /// Whether the thread is known to be a sub-agent's.
    #[cfg(test)]
    pub(crate) fn is_child(&self, thread_id: &str) -> bool {
        self.parents.contains_key(thread_id)
    }

    /// Codex's id of the turn that runs on a thread.
    pub(crate) fn running(&self, thread_id: &str) -> Option<&str> {
        self.running.get(thread_id).map(String::as_str)
    }

    /// Whether the thread has a goal that Codex goes on with by itself.
    pub(crate) fn has_goal(&self, thread_id: &str) -> bool {
        self.goals.contains(thread_id)
    }

    /// What runs on a thread now, for a look back at it.
    pub(crate) fn now(&self, thread_id: &str) -> Before {
        let begun = self.begun_before_those + self.begun.len() as u64;
        Before { running: self.running.get(thread_id).cloned(), begun }
    }

    /// Notes that a turn of this name is being started on a thread.
    pub(crate) fn expect_root(&mut self, root_turn_id: &str, thread_id: &str) {
        self.roots.push_back((root_turn_id.to_owned(), thread_id.to_owned()));
        if self.roots.len() > BEGUN {
            self.roots.pop_front();
        }
    }

    /// Notes that a turn runs, whatever was told of it.
    pub(crate) fn note_running(&mut self, thread_id: &str, turn_id: &str) {
        self.running.insert(thread_id.to_owned(), turn_id.to_owned());
    }

    /// Notes that a turn runs no more.
    pub(crate) fn note_ended(&mut self, thread_id: &str, turn_id: &str) {
        if self.running(thread_id) == Some(turn_id) {
            self.running.remove(thread_id);
        }
    }

    /// Whether a turn had begun by then. Codex answers `turn/start` on a busy thread with the turn
    /// that runs.
    pub(crate) fn had_begun(&self, before: &Before, turn_id: &str) -> bool {
        let known = before.begun.saturating_sub(self.begun_before_those);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        before.running.as_deref() == Some(turn_id)
            || self.begun.iter().take(known).any(|(turn, _)| turn == turn_id)
    }

    /// Forgets the token counts of a thread: it has others from now on.
    pub(crate) fn forget_counts(&mut self, thread_id: &str) {
        self.counts.remove(thread_id);
    }

    /// The turn that has begun on a thread since then.
    pub(crate) fn begun_since(&self, before: &Before, thread_id: &str) -> Option<String> {
        let known = before.begun.saturating_sub(self.begun_before_those);
        let known = usize::try_from(known).unwrap_or(usize::MAX);
        let mut since = self.begun.iter().skip(known);
        since.find(|(_, thread)| thread == thread_id).map(|(turn, _)| turn.clone())
    }

    /// The last token counts that were told of a thread.
    pub(crate) fn counts(&self, thread_id: &str) -> Option<Usage> {
        self.counts.get(thread_id).copied()
    }

    /// The turns that run on a thread and on those that descend from it, with their threads.
    pub(crate) fn running_below(&self, thread_id: &str) -> Vec<(String, String)> {
        let below = self.running.iter().filter(|(thread, _)| {
            *thread == thread_id || self.ancestors(thread).any(|elder| elder == thread_id)
        });
        below.map(|(thread, turn)| (thread.clone(), turn.clone())).collect()
    }

    /// Notes that a turn was stopped because it was nobody's, for whoever has the next turn on the
    /// thread, or on the one that it descends from. False where that is known already.
    pub(crate) fn note_stopped(&mut self, thread_id: &str, turn_id: &str) -> bool {
        let head = self.head_of(thread_id).to_owned();
        let stopped = self.stopped.entry(head).or_default();
        if stopped.iter().any(|known| known == turn_id) {
            return false;
        }
        stopped.push(turn_id.to_owned());
        true
    }

    /// The turns that were stopped on a thread since this was last asked.
    pub(crate) fn take_stopped(&mut self, thread_id: &str) -> Vec<String> {
        self.stopped.remove(thread_id).unwrap_or_default()
    }

    fn thread_of(&self, turn_id: &str) -> Option<String> {
        let mut known = self.roots.iter().chain(&self.begun).rev();
        let found = known.find(|(turn, _)| turn == turn_id);
        found.map(|(_, thread)| thread.clone())
    }

    /// A worker that never says that it unloads a thread must not fill the memory.
    fn stay_small(&mut self) {
        if self.parents.len() > REMEMBERED {
            self.parents.clear();
        }
        if self.counts.len() > REMEMBERED {
            self.counts.clear();
        }
        if self.stopped.len() > REMEMBERED {
            self.stopped.clear();
        }
        if self.goals.len() > REMEMBERED {
            self.goals.clear();
        }
        if self.running.len() > REMEMBERED {
            self.running.clear();
        }
    }
}

/// What an item that begins or ends tells of sub-agents.
fn agents_of(event: &Event) -> Option<&SubAgent> {
    let (Event::ItemStarted(ItemStarted { item }) | Event::ItemCompleted(ItemCompleted { item })) =
        event
    else {
        return None;
    };
    match &item.as_ref()?.kind {
        Some(ItemKind::SubAgent(agents)) => Some(agents),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::item::{Item, SubAgentState};

    fn started(thread: &str, turn: &str, root: Option<&str>) -> Told {
        Told::of(thread, Some(turn), News::TurnStarted { root_turn_id: root.map(str::to_owned) })
    }

    fn told(news: impl IntoIterator<Item = Told>) -> Ownership {
        let mut ownership = Ownership::default();
        for told in news {
            assert!(Ownership::is_touched_by(&told.news));
            ownership.observe(&told);
        }
        ownership
    }

    #[test]
    fn a_childs_line_is_known_from_its_first_turn_or_from_its_parents_items() {
        let children = |parent: &str, child: &str| {
            let child = SubAgentState { thread_id: child.to_owned(), ..SubAgentState::default() };
            let told = SubAgent { agents: vec![child], ..SubAgent::default() };
            let item = Item::new("i", ItemKind::SubAgent(told));
            Told::of(parent, None, News::Event(Event::item_completed(item)))
        };
        let ownership = told([
            started("p", "1", Some("1")),
            started("c", "2", Some("1")),
            children("c", "g"),
            // A child's word to its parent makes the parent no child.
            children("c", "p"),
            children("c", "c"),
        ]);
        assert_eq!(ownership.ancestors("g").collect::<Vec<_>>(), ["c", "p"]);
        assert_eq!((ownership.head_of("g"), ownership.head_of("p")), ("p", "p"));
        assert!(ownership.is_child("c") && !ownership.is_child("p"));
        // By the name that its turn was given when it was started.
        let mut ownership = Ownership::default();
        ownership.expect_root("r", "p");
        ownership.observe(&started("p", "1", Some("r")));
        ownership.observe(&started("c", "2", Some("r")));
        assert_eq!(ownership.head_of("c"), "p");
        // A thread that goes on with its own goal is nobody's child; nor is one of an unknown root.
        let ownership = told([
            started("p", "1", Some("1")),
            started("p", "2", Some("1")),
            started("x", "3", Some("0")),
            started("y", "4", None),
        ]);
        assert!(["p", "x", "y"].iter().all(|thread| !ownership.is_child(thread)));
    }

    #[test]
    fn a_turn_that_was_there_before_is_told_from_a_new_one() {
        let mut ownership = told([started("t", "old", None)]);
        let before = ownership.now("t");
        ownership.observe(&started("t", "new", None));
        assert!(ownership.had_begun(&before, "old") && !ownership.had_begun(&before, "new"));
        // Also long ago, and after its end.
        for number in 0..2 * BEGUN {
            ownership.observe(&started("u", &format!("u{number}"), None));
        }
        assert!(ownership.had_begun(&before, "old") && !ownership.had_begun(&before, "new"));
        assert!(ownership.had_begun(&ownership.now("t"), "u2000"));
        ownership.observe(&Told::of("t", None, News::ThreadIdle));
        assert_eq!(ownership.running("t"), None);
    }

    #[test]
    fn what_was_stopped_is_told_once_to_the_head_of_the_line() {
        let mut ownership = told([started("p", "1", Some("1")), started("c", "2", Some("1"))]);
        assert!(ownership.note_stopped("c", "2"));
        assert!(!ownership.note_stopped("c", "2"));
        assert!(ownership.take_stopped("c").is_empty());
        assert_eq!(ownership.take_stopped("p"), ["2"]);
        assert!(ownership.take_stopped("p").is_empty());
    }

    #[test]
    fn all_but_the_counts_goes_with_the_thread() {
        let total = Usage { input_tokens: 2, ..Usage::default() };
        let counts = News::TokenUsage { total, last: total, model_context_window: None };
        let mut ownership = told([
            Told::of("t", None, counts),
            Told::of("t", None, News::Goal { is_active: true }),
            started("t", "1", Some("1")),
            started("c", "2", Some("1")),
            started("u", "3", Some("3")),
        ]);
        let mut below = ownership.running_below("t");
        below.sort();
        let turn = |thread: &str, turn: &str| (thread.to_owned(), turn.to_owned());
        assert_eq!(below, [turn("c", "2"), turn("t", "1")]);
        assert!(ownership.has_goal("t"));
        ownership.observe(&Told::of("t", None, News::ThreadUnloaded));
        assert!(!ownership.has_goal("t") && ownership.running("t").is_none());
        // The counts are the thread's, wherever it is loaded next.
        assert_eq!(ownership.counts("t"), Some(total));
    }
}
