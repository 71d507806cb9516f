//! What belongs to a running turn: Codex's turns on its thread, its sub-agents, the commands of both.
//!
//! Pure: it is told what happened and says what still runs. The caller's one turn is over when nothing
//! does: its thread has a turn of Codex's no more and none is to come, and neither has any sub-agent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::meter::Meter;
use crate::app_server::decode::Scope;
use crate::model::event::Usage;
use crate::model::item::{
    Item, ItemKind, SubAgent, SubAgentAction, SubAgentPhase, SubAgentState, SubAgentStatus,
};

/// How long a sub-agent that was started or told something may take to begin with it.
const BEGINS_WITHIN: Duration = Duration::from_secs(1);

/// How long Codex may take to go on with a goal: as a rule it takes some milliseconds.
const GOES_ON_WITHIN: Duration = Duration::from_secs(2);

/// All that belongs to a running turn.
#[derive(Debug)]
pub(super) struct Owned {
    thread_id: String,
    // The name under which the turn was started.
    root: String,
    // Codex's ids of the turns that are the caller's one turn, and of those within them.
    turns: Vec<String>,
    current: Option<String>,
    // The turn within that one in which a reviewer works: by then Codex interrupts no other.
    within: Option<String>,
    // Whether there is a reviewer, whose turn is told by its chain of work only by newer CLIs.
    is_review: bool,
    // The threads with a goal that Codex goes on with by itself.
    goals: BTreeSet<String>,
    // Until when Codex may go on with the turn's own.
    continues_by: Option<Instant>,
    agents: BTreeMap<String, Agent>,
    commands: BTreeMap<String, Commands>,
    // The MCP calls that run, each with its thread.
    mcp_calls: BTreeSet<(String, String)>,
}

/// A sub-agent.
#[derive(Debug, Default)]
struct Agent {
    path: String,
    prompt: String,
    said: String,
    phase: Option<SubAgentPhase>,
    turn: Option<String>,
    turns_begun: u64,
    // The count above when it was last told something.
    told_at: Option<u64>,
    // Until when it may begin.
    begins_by: Option<Instant>,
    // What it used in earlier turns is theirs.
    meter: Meter,
}

/// The commands of one thread.
#[derive(Debug, Default)]
struct Commands {
    // By item.
    running: BTreeMap<String, String>,
    any: bool,
}

/// Whose a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whose {
    /// The turn's own.
    Own,
    /// A sub-agent's, on this thread.
    Agent(String),
    /// That of another turn of the thread.
    Another,
}

/// What the begin of a turn means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is known, part of what runs, or of no matter.
    Known,
    /// Codex goes on by itself.
    Continuation,
}

/// Whether the turn is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// Something runs.
    Busy,
    /// Nothing runs, but something may begin until then.
    Until(Instant),
    /// Nothing runs; there is a goal that Codex does not go on with, but may.
    Goal,
    /// Nothing runs, and nothing will.
    Over,
}

impl Rest {
    /// Whether something runs, or may begin by itself.
    pub(super) fn is_at_work(self) -> bool {
        matches!(self, Rest::Busy | Rest::Until(_))
    }
}

impl Owned {
    pub(super) fn new(thread_id: &str, root: &str, codex_turn_id: &str) -> Owned {
        Owned {
            thread_id: thread_id.to_owned(),
            root: root.to_owned(),
            turns: vec![codex_turn_id.to_owned()],
            current: Some(codex_turn_id.to_owned()),
            within: None,
            is_review: false,
            goals: BTreeSet::new(),
            continues_by: None,
            agents: BTreeMap::new(),
            commands: BTreeMap::new(),
            mcp_calls: BTreeSet::new(),
        }
    }

    /// The same of a turn that is a review.
    pub(super) fn of_review(self, is_review: bool) -> Owned {
        Owned { is_review, ..self }
    }

    /// Whose a message of this scope is.
    pub(super) fn whose(&self, scope: &Scope) -> Whose {
        match (&scope.thread_id, &scope.turn_id) {
            (Some(thread_id), _) if *thread_id != self.thread_id => Whose::Agent(thread_id.clone()),
            (_, Some(turn_id)) if !self.turns.contains(turn_id) => Whose::Another,
            (_, _) => Whose::Own,
        }
    }

    /// A turn begins on the turn's own thread, in a chain of work that began with `root`.
    pub(super) fn turn_begins(&mut self, turn_id: &str, root: Option<&str>) -> Begun {
        let is_own = |id: &str| self.root == id || self.turns.iter().any(|known| known == id);
        if is_own(turn_id) {
            return Begun::Known;
        }
        if self.current.is_some() {
            // A reviewer's, within the turn that runs: no end of its own is told. Any other one was
            // there before, and its begin is told late.
            if root.map_or(self.is_review, is_own) {
                self.turns.push(turn_id.to_owned());
                self.within = Some(turn_id.to_owned());
            }
            return Begun::Known;
        }
        self.turns.push(turn_id.to_owned());
        self.current = Some(turn_id.to_owned());
        self.continues_by = None;
        Begun::Continuation
    }

    /// A turn on the turn's own thread ends; whether it is the one that runs.
    pub(super) fn turn_ends(
        &mut self,
        turn_id: Option<&str>,
        went_well: bool,
        now: Instant,
    ) -> bool {
        if turn_id.is_some() && turn_id != self.current.as_deref() {
            return false;
        }
        self.current = None;
        self.within = None;
        let goes_on = went_well && self.goals.contains(&self.thread_id);
        self.continues_by = goes_on.then(|| now + GOES_ON_WITHIN);
        true
    }

    /// The goal of a thread changes, of the turn's own or of a sub-agent's.
    pub(super) fn goal_changes(&mut self, thread_id: &str, is_active: bool) {
        if is_active {
            self.goals.insert(thread_id.to_owned());
            return;
        }
        self.goals.remove(thread_id);
        if thread_id == self.thread_id {
            self.continues_by = None;
        } else if let Some(agent) = self.agents.get_mut(thread_id) {
            agent.begins_by = None;
        }
    }

    /// No thread has a goal any more.
    pub(super) fn forget_goals(&mut self) {
        self.goals.clear();
        self.continues_by = None;
    }

    /// The threads with a goal that Codex goes on with by itself.
    pub(super) fn goals(&self) -> Vec<String> {
        self.goals.iter().cloned().collect()
    }

    /// Whether more runs, or is about to, than the turn's own thread has.
    pub(super) fn has_others(&self) -> bool {
        !self.goals.is_empty() || self.agents.values().any(|agent| agent.turn.is_some())
    }

    /// The turns that run, with their threads.
    pub(super) fn running(&self) -> Vec<(String, String)> {
        let own = self.current.iter().chain(&self.within);
        let own = own.map(|turn| (self.thread_id.clone(), turn.clone()));
        let agents = self.agents.iter().filter_map(|(thread, agent)| {
            agent.turn.as_ref().map(|turn| (thread.clone(), turn.clone()))
        });
        own.chain(agents).collect()
    }

    /// The threads of the sub-agents that were met.
    pub(super) fn agent_threads(&self) -> Vec<String> {
        self.agents.keys().cloned().collect()
    }

    /// Whether the turn is over.
    pub(super) fn rest(&self, now: Instant) -> Rest {
        if self.current.is_some() || self.agents.values().any(|agent| agent.turn.is_some()) {
            return Rest::Busy;
        }
        let to_come = self.agents.values().filter_map(|agent| agent.begins_by);
        let latest = to_come.chain(self.continues_by).filter(|by| *by > now).max();
        match latest {
            Some(by) => Rest::Until(by),
            None if !self.goals.is_empty() => Rest::Goal,
            None => Rest::Over,
        }
    }

    /// An item of the thread begins, changes or ends: of the turn's own, or of a sub-agent's, which
    /// may have sub-agents itself.
    pub(super) fn notes_item(&mut self, thread_id: &str, item: &Item, ended: bool, now: Instant) {
        match &item.kind {
            Some(ItemKind::CommandExecution(command)) => {
                let commands = self.commands.entry(thread_id.to_owned()).or_default();
                if ended {
                    commands.running.remove(&item.id);
                } else {
                    commands.running.insert(item.id.clone(), command.command.clone());
                    commands.any = true;
                }
            }
            Some(ItemKind::McpToolCall(_)) => {
                let call = (thread_id.to_owned(), item.id.clone());
                if ended {
                    self.mcp_calls.remove(&call);
                } else {
                    self.mcp_calls.insert(call);
                }
            }
            Some(ItemKind::SubAgent(told)) => self.notes_agents(told, ended, now),
            _ => {}
        }
    }

    /// The begin of a command was lost with its line.
    pub(super) fn loses_begin_of_command(&mut self, thread_id: &str, item_id: Option<String>) {
        let commands = self.commands.entry(thread_id.to_owned()).or_default();
        commands.any = true;
        commands.running.extend(item_id.map(|item_id| (item_id, String::new())));
    }

    /// The end of an item was lost with its line.
    pub(super) fn loses_end_of_item(&mut self, thread_id: &str, item_id: Option<&str>) {
        if let (Some(commands), Some(item_id)) = (self.commands.get_mut(thread_id), item_id) {
            commands.running.remove(item_id);
        }
        self.mcp_calls.retain(|(thread, item)| thread != thread_id || Some(&**item) != item_id);
    }

    fn notes_agents(&mut self, told: &SubAgent, ended: bool, now: Instant) {
        // A word that only waits in the other's post box, or none at all.
        let sets_to_work = matches!(told.action(), SubAgentAction::Spawn | SubAgentAction::Message)
            && told.tool != "sendMessage";
        for state in &told.agents {
            if state.thread_id == self.thread_id {
                continue;
            }
            let agent = self.agents.entry(state.thread_id.clone()).or_default();
            if !state.path.is_empty() {
                agent.path.clone_from(&state.path);
            }
            if !sets_to_work {
                continue;
            }
            if !ended {
                agent.told_at = Some(agent.turns_begun);
                continue;
            }
            let told_at = agent.told_at.take().unwrap_or(0);
            let went_well = told.status() == SubAgentStatus::Completed;
            if went_well && agent.turn.is_none() && agent.turns_begun == told_at {
                agent.begins_by = Some(now + BEGINS_WITHIN);
            }
        }
    }

    /// The id of the item that tells of what a sub-agent does now.
    pub(super) fn agent_item(&self, thread_id: &str) -> Option<&str> {
        self.agents.get(thread_id)?.turn.as_deref()
    }

    /// A sub-agent's turn begins; the item that tells of it.
    pub(super) fn agent_begins(&mut self, thread_id: &str, turn_id: &str) -> Option<Item> {
        let agent = self.agents.entry(thread_id.to_owned()).or_default();
        if agent.turn.as_deref() == Some(turn_id) {
            return None;
        }
        agent.turn = Some(turn_id.to_owned());
        agent.turns_begun += 1;
        agent.begins_by = None;
        agent.phase = Some(SubAgentPhase::Running);
        agent.said.clear();
        agent.prompt.clear();
        Some(agent.item(thread_id, turn_id, SubAgentStatus::InProgress))
    }

    /// A sub-agent is told something, as its own thread says.
    pub(super) fn agent_hears(&mut self, thread_id: &str, prompt: String) {
        if let Some(agent) = self.agents.get_mut(thread_id) {
            agent.prompt = prompt;
        }
    }

    /// A sub-agent says something; the item that tells of it.
    pub(super) fn agent_says(&mut self, thread_id: &str, said: &str) -> Option<Item> {
        let agent = self.agents.get_mut(thread_id)?;
        said.clone_into(&mut agent.said);
        let turn = agent.turn.clone()?;
        Some(agent.item(thread_id, &turn, SubAgentStatus::InProgress))
    }

    /// A sub-agent's turn ends; the item that tells of it.
    pub(super) fn agent_ends(
        &mut self,
        thread_id: &str,
        status: SubAgentStatus,
        failure: Option<&str>,
        now: Instant,
    ) -> Option<Item> {
        let goes_on = status == SubAgentStatus::Completed && self.goals.contains(thread_id);
        let agent = self.agents.get_mut(thread_id)?;
        let turn = agent.turn.take()?;
        self.mcp_calls.retain(|(thread, _)| thread != thread_id);
        agent.begins_by = goes_on.then(|| now + GOES_ON_WITHIN);
        agent.phase = Some(match status {
            SubAgentStatus::InProgress | SubAgentStatus::Unspecified => SubAgentPhase::Running,
            SubAgentStatus::Completed => SubAgentPhase::Completed,
            SubAgentStatus::Failed => SubAgentPhase::Errored,
            SubAgentStatus::Interrupted => SubAgentPhase::Interrupted,
        });
        if let Some(failure) = failure {
            failure.clone_into(&mut agent.said);
        }
        Some(agent.item(thread_id, &turn, status))
    }

    /// A sub-agent's thread is unloaded: whatever it did is over.
    pub(super) fn agent_goes(&mut self, thread_id: &str, now: Instant) -> Option<Item> {
        self.goals.remove(thread_id);
        let item = self.agent_ends(thread_id, SubAgentStatus::Interrupted, None, now);
        if let Some(agent) = self.agents.get_mut(thread_id) {
            agent.begins_by = None;
        }
        item
    }

    /// A sub-agent's token counts change; whether they do.
    pub(super) fn agent_uses(&mut self, thread_id: &str, total: Usage, last: Usage) -> bool {
        let agent = self.agents.entry(thread_id.to_owned()).or_default();
        agent.meter.take(total, last)
    }

    /// The tokens of all sub-agents in this turn.
    pub(super) fn agents_usage(&self) -> Usage {
        let used = self.agents.values().map(|agent| agent.meter.used());
        used.fold(Usage::default(), |sum, used| sum + used)
    }

    /// Whether a command still runs, as far as items tell.
    pub(super) fn has_running_commands(&self) -> bool {
        self.commands.values().any(|commands| !commands.running.is_empty())
    }

    /// Whether a command, an MCP call or a sub-agent runs, which may take their time.
    pub(super) fn has_running_tools(&self) -> bool {
        self.has_running_commands()
            || !self.mcp_calls.is_empty()
            || self.agents.values().any(|agent| agent.turn.is_some())
    }

    /// The threads that had commands, each with the items of those that still run.
    pub(super) fn commands(&self) -> Vec<(String, Vec<String>)> {
        let had = self.commands.iter().filter(|(_, commands)| commands.any);
        had.map(|(thread, commands)| (thread.clone(), commands.running.keys().cloned().collect()))
            .collect()
    }
}

impl Agent {
    fn item(&self, thread_id: &str, turn_id: &str, status: SubAgentStatus) -> Item {
        let state = SubAgentState {
            thread_id: thread_id.to_owned(),
            path: self.path.clone(),
            phase: self.phase.unwrap_or_default().into(),
            message: self.said.clone(),
        };
        let kind = ItemKind::SubAgent(SubAgent {
            action: SubAgentAction::Work.into(),
            tool: String::new(),
            status: status.into(),
            sender_thread_id: thread_id.to_owned(),
            agents: vec![state],
            prompt: self.prompt.clone(),
            model: String::new(),
            reasoning_effort: String::new(),
        });
        Item::new(turn_id, kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::item::CommandExecution;

    fn scope(thread_id: &str, turn_id: Option<&str>) -> Scope {
        Scope { thread_id: Some(thread_id.to_owned()), turn_id: turn_id.map(str::to_owned) }
    }

    fn agents(action: SubAgentAction, tool: &str, thread_id: &str) -> Item {
        let state = SubAgentState {
            thread_id: thread_id.to_owned(),
            path: String::new(),
            phase: SubAgentPhase::Pending.into(),
            message: String::new(),
        };
        let kind = ItemKind::SubAgent(SubAgent {
            action: action.into(),
            tool: tool.to_owned(),
            status: SubAgentStatus::Completed.into(),
            sender_thread_id: "t".to_owned(),
            agents: vec![state],
            prompt: String::new(),
            model: String::new(),
            reasoning_effort: String::new(),
        });
        Item::new("call", kind)
    }

    #[test]
    fn messages_of_other_turns_of_the_thread_are_told_apart() {
        let mut owned = Owned::new("t", "r", "1");
        assert_eq!(owned.whose(&scope("t", Some("1"))), Whose::Own);
        assert_eq!(owned.whose(&scope("t", None)), Whose::Own);
        assert_eq!(owned.whose(&Scope::default()), Whose::Own);
        assert_eq!(owned.whose(&scope("t", Some("0"))), Whose::Another);
        assert_eq!(owned.whose(&scope("c", Some("1"))), Whose::Agent("c".to_owned()));
        // A turn within the turn is its own, and does not take its place.
        assert_eq!(owned.turn_begins("inner", Some("r")), Begun::Known);
        assert_eq!(owned.whose(&scope("t", Some("inner"))), Whose::Own);
        // Codex interrupts the one or the other, as far as it has come.
        let both = ["1", "inner"].map(|turn| ("t".to_owned(), turn.to_owned()));
        assert_eq!(owned.running(), both);
        assert!(!owned.turn_ends(Some("inner"), true, Instant::now()));
        // One that was there before is told late.
        assert_eq!(owned.turn_begins("before", Some("before")), Begun::Known);
        assert_eq!(owned.whose(&scope("t", Some("before"))), Whose::Another);
        assert!(owned.turn_ends(Some("1"), true, Instant::now()));
        assert_eq!(owned.rest(Instant::now()), Rest::Over);
    }

    #[test]
    fn a_reviewers_turn_is_known_also_where_codex_does_not_say_whose_it_is() {
        let now = Instant::now();
        let mut other = Owned::new("t", "r", "1");
        assert_eq!(other.turn_begins("inner", None), Begun::Known);
        assert_eq!(other.whose(&scope("t", Some("inner"))), Whose::Another);
        let mut review = Owned::new("t", "r", "1").of_review(true);
        assert_eq!(review.turn_begins("inner", None), Begun::Known);
        assert_eq!(review.whose(&scope("t", Some("inner"))), Whose::Own);
        assert_eq!(review.running().len(), 2);
        assert!(review.turn_ends(Some("1"), true, now));
        assert_eq!((review.running().len(), review.rest(now)), (0, Rest::Over));
    }

    #[test]
    fn a_turn_with_a_goal_goes_on_until_the_goal_is_done() {
        let now = Instant::now();
        let mut owned = Owned::new("t", "r", "1");
        owned.goal_changes("t", true);
        assert!(owned.turn_ends(Some("1"), true, now));
        assert_eq!(owned.rest(now), Rest::Until(now + GOES_ON_WITHIN));
        assert_eq!(owned.turn_begins("2", Some("r")), Begun::Continuation);
        assert_eq!(
            (owned.rest(now), owned.running()),
            (Rest::Busy, vec![("t".into(), "2".into())])
        );
        assert!(owned.turn_ends(Some("2"), true, now));
        // One that Codex does not go on with is looked into.
        assert_eq!(owned.rest(now + GOES_ON_WITHIN), Rest::Goal);
        owned.goal_changes("t", false);
        assert_eq!(owned.rest(now), Rest::Over);
        // A sub-agent's goal is waited for as well.
        owned.agent_begins("c", "3");
        owned.goal_changes("c", true);
        owned.agent_ends("c", SubAgentStatus::Completed, None, now);
        assert_eq!(owned.rest(now), Rest::Until(now + GOES_ON_WITHIN));
        assert_eq!(owned.rest(now + GOES_ON_WITHIN), Rest::Goal);
        owned.goal_changes("c", false);
        assert_eq!(owned.rest(now), Rest::Over);
        // After a failure nothing is waited for.
        let mut owned = Owned::new("t", "r", "1");
        owned.goal_changes("t", true);
        assert!(owned.turn_ends(Some("1"), false, now));
        assert_eq!(owned.rest(now), Rest::Goal);
    }

    #[test]
    fn a_turn_waits_for_its_agents_also_for_those_that_have_not_begun() {
        let now = Instant::now();
        let mut owned = Owned::new("t", "r", "1");
        owned.notes_item("t", &agents(SubAgentAction::Spawn, "spawnAgent", "c"), true, now);
        assert!(owned.turn_ends(Some("1"), true, now));
        assert_eq!(owned.rest(now), Rest::Until(now + BEGINS_WITHIN));
        assert!(owned.agent_begins("c", "2").is_some());
        assert!(owned.agent_begins("c", "2").is_none(), "told once");
        assert_eq!(owned.rest(now), Rest::Busy);
        // A grandchild, which began before it was told of.
        assert!(owned.agent_begins("g", "3").is_some());
        owned.notes_item("c", &agents(SubAgentAction::Spawn, "spawnAgent", "g"), true, now);
        assert!(owned.agent_ends("c", SubAgentStatus::Completed, None, now).is_some());
        assert_eq!(owned.rest(now), Rest::Busy);
        assert!(owned.agent_ends("g", SubAgentStatus::Failed, Some("no"), now).is_some());
        assert_eq!(owned.rest(now), Rest::Over);
    }

    #[test]
    fn only_a_word_that_sets_an_agent_to_work_is_waited_for() {
        let now = Instant::now();
        let mut owned = Owned::new("t", "r", "1");
        owned.agent_begins("c", "2");
        owned.agent_ends("c", SubAgentStatus::Completed, None, now);
        owned.turn_ends(Some("1"), true, now);
        for (action, tool) in [
            (SubAgentAction::Wait, "wait"),
            (SubAgentAction::Close, "closeAgent"),
            (SubAgentAction::Message, "sendMessage"),
        ] {
            owned.notes_item("t", &agents(action, tool, "c"), false, now);
            owned.notes_item("t", &agents(action, tool, "c"), true, now);
            assert_eq!(owned.rest(now), Rest::Over, "{tool}");
        }
        // One that has worked on it already, before the word was told as said.
        let word = agents(SubAgentAction::Message, "sendInput", "c");
        owned.notes_item("t", &word, false, now);
        owned.agent_begins("c", "3");
        owned.agent_ends("c", SubAgentStatus::Completed, None, now);
        owned.notes_item("t", &word, true, now);
        assert_eq!(owned.rest(now), Rest::Over);
        owned.notes_item("t", &word, false, now);
        owned.notes_item("t", &word, true, now);
        assert_eq!(owned.rest(now), Rest::Until(now + BEGINS_WITHIN));
    }

    #[test]
    fn what_agents_used_before_the_turn_is_not_the_turns() {
        let usage = |input_tokens| Usage { input_tokens, ..Usage::default() };
        let mut owned = Owned::new("t", "r", "1");
        assert!(owned.agent_uses("old", usage(1000), usage(100)));
        assert!(owned.agent_uses("old", usage(1500), usage(500)));
        assert!(!owned.agent_uses("old", usage(1500), usage(500)), "told twice");
        assert!(owned.agent_uses("new", usage(7), usage(7)));
        assert_eq!(owned.agents_usage(), usage(607));
    }

    #[test]
    fn commands_are_known_by_thread_as_long_as_they_run() {
        let command = |id: &str| {
            let command = "sleep".to_owned();
            let command = CommandExecution { command, ..CommandExecution::default() };
            Item::new(id, ItemKind::CommandExecution(command))
        };
        let now = Instant::now();
        let mut owned = Owned::new("t", "r", "1");
        owned.notes_item("t", &command("a"), false, now);
        owned.notes_item("t", &command("a"), true, now);
        assert!(!owned.has_running_commands());
        owned.notes_item("c", &command("b"), false, now);
        assert!(owned.has_running_commands());
        let of = |thread: &str, items: &[&str]| {
            (thread.to_owned(), items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(owned.commands(), [of("c", &["b"]), of("t", &[])]);
    }
}
