//! The way back in: whether whoever connects, or calls, is one of the commands that turns run.
//!
//! Asked once for each connection that is accepted, before its first call is served. Connections that
//! arrive together are looked up together, by one search on a thread of its own, and searches take no more
//! than a third of one processor; the search itself is `process`'s matter. What it can't tell is let in
//! and counted, unless callers must be identified; it is looked up again before calls on it are served,
//! because who calls has the connection at that moment, wherever it was before.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::listen::Socket;
use crate::access::IdentifyPeers;
use crate::process::{Census, Kin, Moment, Peer};

/// How much longer than a search the pause after it is, and how long at least and at most.
const PAUSES: u32 = 4;
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// How long is searched without a pause.
const SLICE: Duration = Duration::from_millis(50);
/// How often a search goes on that had not looked at everybody.
const SLICES: usize = 4;
/// Before how many calls a connection that could not be told is looked up again in any case, and how often
/// from then on at most.
const FIRST_CALLS: u32 = 4;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the same trouble is logged at most.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Looks who is at the other ends of connections, and answers; over when the next may be looked up.
type Look = dyn Fn(Vec<Question>) -> BoxFuture<'static, ()> + Send + Sync;

/// Who asks. Clones ask the same.
#[derive(Clone)]
pub(super) struct Descent {
    questions: mpsc::UnboundedSender<Question>,
    shared: Arc<DescentBooks>,
    /// Where those connect of whom it is asked.
    listener: Arc<str>,
}

impl std::fmt::Debug for Descent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Descent").field("books", &self.shared).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct DescentBooks {
    identify: IdentifyPeers,
    unidentified: Arc<AtomicU64>,
    /// When each kind of trouble was last told, and how often it was not told since.
    told: Mutex<[Told; 2]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Told {
    at: Option<Instant>,
    untold: u64,
}

struct Question {
    peer: Peer,
    answer: oneshot::Sender<Kin>,
}

/// Whether a connection, and each call on it, may be served. Clones are of the same connection.
#[derive(Clone)]
pub(super) struct Verdict {
    first: Judgment,
    connection: Arc<Judged>,
}

impl std::fmt::Debug for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verdict").field("first", &self.first.peek()).finish_non_exhaustive()
    }
}

/// What a search has come to.
type Judgment = Shared<BoxFuture<'static, Result<Standing, Refused>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Told,
    /// It is let in, and counted.
    Untold,
}

/// A connection that is judged.
struct Judged {
    descent: Descent,
    /// Where to look again would tell no more there is none.
    peer: Option<Peer>,
    again: Mutex<Again>,
    marks: Arc<Marks>,
}

#[derive(Default)]
struct Again {
    looks: u32,
    last: Option<(Instant, Judgment)>,
}

/// What has become of it.
#[derive(Debug, Default)]
struct Marks {
    is_counted: AtomicBool,
    refused: CancellationToken,
}

/// It may not: it comes from a command of a turn, or it is not known from where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused;

impl Descent {
    /// Begins to answer, on the runtime that this is called on, as long as there is anybody to ask.
    pub(super) fn start(identify: IdentifyPeers) -> Descent {
        Descent::with(identify, Arc::new(|questions| search(questions).boxed()))
    }

    fn with(identify: IdentifyPeers, look: Arc<Look>) -> Descent {
        let (questions, asked) = mpsc::unbounded_channel();
        tokio::spawn(answer(asked, look));
        let unidentified = Arc::default();
        let told = Mutex::default();
        let shared = Arc::new(DescentBooks { identify, unidentified, told });
        Descent { questions, shared, listener: "".into() }
    }

    /// Nobody who connects is of a turn.
    #[cfg(test)]
    pub(super) fn of_strangers() -> Descent {
        let look = |questions: Vec<Question>| {
            questions.into_iter().for_each(|question| question.settle(Kin::Stranger));
            futures::future::ready(()).boxed()
        };
        Descent::with(IdentifyPeers::WhenPossible, Arc::new(look))
    }

    /// The same for those who connect to this listener.
    pub(super) fn at(&self, listener: &impl ToString) -> Descent {
        Descent { listener: listener.to_string().into(), ..self.clone() }
    }

    /// How many connections were let in of which it could not be told who they are.
    pub(super) fn unidentified(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.unidentified)
    }

    /// Whether this connection may be served. The search begins at once.
    pub(super) fn verdict(&self, peer: io::Result<Peer>) -> Verdict {
        let marks = Arc::<Marks>::default();
        let first = match &peer {
            Ok(peer) => self.ask(*peer, &marks),
            // Reset before it was accepted. What it had sent until then could still be read.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {
                self.judgment(futures::future::ready(Kin::Gone), &marks)
            }
            Err(_) => {
                let untold = Kin::Unknown("the connection does not tell");
                self.judgment(futures::future::ready(untold), &marks)
            }
        };
        // One of another PID namespace has no other number later.
        let peer = peer.ok().filter(|peer| !matches!(peer, Peer::Process { pid: 0, .. }));
        let descent = self.clone();
        Verdict {
            first,
            connection: Arc::new(Judged { descent, peer, again: Mutex::default(), marks }),
        }
    }

    /// Has it looked up, beginning at once.
    fn ask(&self, peer: Peer, marks: &Arc<Marks>) -> Judgment {
        let (answer, answered) = oneshot::channel();
        // Nobody answers where nobody hears it.
        let _ = self.questions.send(Question { peer, answer });
        let failed = Kin::Unknown("the search has failed");
        self.judgment(answered.map(|kin| kin.unwrap_or(failed)), marks)
    }

    fn judgment(
        &self,
        kin: impl Future<Output = Kin> + Send + 'static,
        marks: &Arc<Marks>,
    ) -> Judgment {
        let (shared, marks) = (Arc::clone(&self.shared), Arc::clone(marks));
        let listener = Arc::clone(&self.listener);
        let judgment = async move {
            let judged = shared.judge(&kin.await, &listener, &marks);
            if judged.is_err() {
                marks.refused.cancel();
            }
            judged
        };
        judgment.boxed().shared()
    }
}

impl Verdict {
    /// Whether a call that has come may be served.
    ///
    /// # Errors
    /// It may not.
    pub(super) async fn on_call(&self) -> Result<(), Refused> {
        match self.first.clone().await? {
            Standing::Told => Ok(()),
            Standing::Untold => self.connection.look_again().await.map(drop),
        }
    }

    /// Resolves once the connection is refused, if that ever is.
    pub(super) async fn refused(&self) {
        if self.first.clone().await.is_ok() {
            self.connection.marks.refused.cancelled().await;
        }
    }
}

impl Judged {
    async fn look_again(&self) -> Result<Standing, Refused> {
        let judgment = {
            let Some(peer) = self.peer else { return Ok(Standing::Untold) };
            let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
            let last = again.last.as_ref().filter(|(at, judgment)| {
                let is_told = matches!(judgment.peek(), Some(Ok(Standing::Told) | Err(Refused)));
                is_told || again.looks >= FIRST_CALLS && at.elapsed() < LOOK_EVERY
            });
            match last {
                Some((_, judgment)) => judgment.clone(),
                None => {
                    let judgment = self.descent.ask(peer, &self.marks);
                    again.looks = again.looks.saturating_add(1);
                    again.last = Some((Instant::now(), judgment.clone()));
                    judgment
                }
            }
        };
        judgment.await
    }
}

/// The other end of a connection.
pub(super) fn peer_of(socket: &Socket) -> io::Result<Peer> {
    Ok(match socket {
        Either::Left(socket) => {
            Peer::Tcp { client: socket.peer_addr()?, server: socket.local_addr()? }
        }
        Either::Right(socket) => {
            let pid = socket.peer_cred()?.pid().unwrap_or_default();
            Peer::Process { pid, seen: Moment::now() }
        }
    })
}

impl DescentBooks {
    fn judge(&self, kin: &Kin, listener: &str, marks: &Marks) -> Result<Standing, Refused> {
        let is_told = !matches!(kin, Kin::Unknown(_));
        if is_told && marks.is_counted.swap(false, Ordering::Relaxed) {
            self.unidentified.fetch_sub(1, Ordering::Relaxed);
        }
        match kin {
            Kin::Stranger => Ok(Standing::Told),
            Kin::Gone => {
                tracing::debug!(listener, "a connection is closed: nobody is at its other end");
                Err(Refused)
            }
            Kin::Ours(somebody) => {
                if let Some(untold) = self.may_tell(0) {
                    tracing::warn!(
                        listener, pid = somebody.pid, command = ?somebody.command, untold,
                        "a connection is refused: {somebody} was started by a turn"
                    );
                }
                Err(Refused)
            }
            Kin::PerhapsOurs(somebody) => {
                if let Some(untold) = self.may_tell(0) {
                    tracing::warn!(
                        listener, pid = somebody.pid, command = ?somebody.command, untold,
                        "a connection is refused: it may be of {somebody}, which was started by a \
                         turn and hides its files"
                    );
                }
                Err(Refused)
            }
            Kin::Unknown(cause) => {
                if marks.is_counted.load(Ordering::Relaxed) {
                    return Ok(Standing::Untold);
                }
                let is_let_in = self.identify == IdentifyPeers::WhenPossible;
                if is_let_in {
                    marks.is_counted.store(true, Ordering::Relaxed);
                    self.unidentified.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(untold) = self.may_tell(1) {
                    let done = if is_let_in {
                        "let in (policy.identify_peers)"
                    } else {
                        "refused (policy.identify_peers = \"required\")"
                    };
                    tracing::warn!(
                        listener,
                        cause,
                        untold,
                        "it can't be told which process is at the other end of a connection: {done}"
                    );
                }
                if is_let_in { Ok(Standing::Untold) } else { Err(Refused) }
            }
        }
    }

    /// Whether this kind of trouble is due to be told, and how often it was not.
    fn may_tell(&self, kind: usize) -> Option<u64> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Told { at, untold } = &mut told[kind];
        if at.is_some_and(|at| at.elapsed() < TELL_EVERY) {
            *untold += 1;
            return None;
        }
        *at = Some(Instant::now());
        Some(std::mem::take(untold))
    }
}

impl Question {
    fn settle(self, kin: Kin) {
        // A connection that has ended meanwhile asks no more.
        let _ = self.answer.send(kin);
    }
}

/// Answers those who ask, all that wait by one search. A connection that asks during a search could be
/// of a process that it has passed: it waits for the next.
async fn answer(mut asked: mpsc::UnboundedReceiver<Question>, look: Arc<Look>) {
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, usize::MAX).await > 0 {
        let begun = Instant::now();
        let connections = waiting.len();
        look(std::mem::take(&mut waiting)).await;
        let took = begun.elapsed();
        tracing::debug!(connections, ?took, "looked who connects");
        tokio::time::sleep(pause_after(took)).await;
    }
}

fn pause_after(took: Duration) -> Duration {
    (took * PAUSES).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Searches for a slice, and leaves those that take longer to themselves: they must not keep up who comes
/// next.
async fn search(questions: Vec<Question>) {
    let census = Census::new(questions.iter().map(|question| question.peer));
    let mut questions: Vec<Option<Question>> = questions.into_iter().map(Some).collect();
    // Where it fails, those who ask are told so by the end of what they wait for.
    let Some((census, is_over)) = search_on(census).await else { return };
    if is_over {
        settle_all(&mut questions, census.end());
    } else {
        settle_known(&mut questions, &census);
        tokio::spawn(search_longer(census, questions));
    }
}

async fn search_longer(mut census: Census, mut questions: Vec<Option<Question>>) {
    static ONE_AT_A_TIME: Semaphore = Semaphore::const_new(1);
    // Never closed.
    let _turn = ONE_AT_A_TIME.acquire().await;
    for _ in 1..SLICES {
        tokio::time::sleep(pause_after(SLICE)).await;
        let Some((searched, is_over)) = search_on(census).await else { return };
        census = searched;
        if is_over {
            break;
        }
        settle_known(&mut questions, &census);
    }
    settle_all(&mut questions, census.end());
}

async fn search_on(mut census: Census) -> Option<(Census, bool)> {
    let searching = tokio::task::spawn_blocking(move || {
        let is_over = census.go_on(SLICE);
        (census, is_over)
    });
    searching.await.ok()
}

fn settle_known(questions: &mut [Option<Question>], census: &Census) {
    for (question, kin) in questions.iter_mut().zip(census.known()) {
        if let Some(kin) = kin
            && let Some(question) = question.take()
        {
            question.settle(kin.clone());
        }
    }
}

fn settle_all(questions: &mut [Option<Question>], found: Vec<Kin>) {
    for (question, kin) in questions.iter_mut().zip(found) {
        if let Some(question) = question.take() {
            question.settle(kin);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::process::Somebody;

    fn peer(pid: i32) -> io::Result<Peer> {
        Ok(Peer::Process { pid, seen: Moment::now() })
    }

    /// What the search at its begin comes to.
    fn at_first(descent: &Descent, peer: io::Result<Peer>) -> Judgment {
        descent.verdict(peer).first
    }

    /// Odd ones are ours, those that 4 divides can't be told, 2 is gone.
    fn by_number(identify: IdentifyPeers, lasts: Duration) -> (Descent, Arc<AtomicUsize>) {
        let looks = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&looks);
        let look = move |questions: Vec<Question>| {
            count.fetch_add(1, Ordering::Relaxed);
            async move {
                tokio::time::sleep(lasts).await;
                for question in questions {
                    let kin = match question.peer {
                        Peer::Process { pid, .. } if pid % 2 == 1 => {
                            Kin::Ours(Somebody { pid, command: "x".to_owned() })
                        }
                        Peer::Process { pid, .. } if pid % 4 == 0 => Kin::Unknown("it is a test"),
                        Peer::Process { pid: 2, .. } => Kin::Gone,
                        _ => Kin::Stranger,
                    };
                    question.settle(kin);
                }
            }
            .boxed()
        };
        (Descent::with(identify, Arc::new(look)), looks)
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_that_come_together_are_looked_up_in_two_searches() {
        let (descent, looks) = by_number(IdentifyPeers::WhenPossible, Duration::from_millis(30));
        let before = Instant::now();
        let verdicts = (0..100).map(|pid| at_first(&descent, peer(pid)));
        let verdicts = futures::future::join_all(verdicts).await;
        for (pid, verdict) in verdicts.iter().enumerate() {
            let is_refused = pid % 2 == 1 || pid == 2;
            assert_eq!(verdict.is_err(), is_refused, "{pid}");
        }
        assert!(looks.load(Ordering::Relaxed) <= 2, "{looks:?}");
        assert!(before.elapsed() <= Duration::from_millis(30 * 6), "{:?}", before.elapsed());
        assert_eq!(descent.unidentified().load(Ordering::Relaxed), 25);
    }

    #[tokio::test(start_paused = true)]
    async fn searches_have_a_pace_and_none_answers_who_came_after_its_begin() {
        let lasts = Duration::from_millis(20);
        let (descent, looks) = by_number(IdentifyPeers::WhenPossible, lasts);
        let before = Instant::now();
        let first = tokio::spawn(at_first(&descent, peer(6)));
        tokio::time::sleep(Duration::from_millis(10)).await;
        let second = tokio::spawn(at_first(&descent, peer(6)));
        first.await.unwrap().unwrap();
        assert_eq!(before.elapsed(), lasts);
        second.await.unwrap().unwrap();
        assert_eq!(before.elapsed(), lasts + lasts * PAUSES + lasts);
        assert_eq!(looks.load(Ordering::Relaxed), 2);
        // Asked again, the same verdict costs nothing.
        let verdict = descent.verdict(peer(7));
        assert_eq!(verdict.on_call().await, Err(Refused));
        let settled = Instant::now();
        assert_eq!(verdict.on_call().await, Err(Refused));
        assert_eq!(settled.elapsed(), Duration::ZERO);
        assert_eq!(looks.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_can_not_be_told_is_refused_only_where_that_is_required() {
        let (descent, _) = by_number(IdentifyPeers::Required, Duration::ZERO);
        assert_eq!(at_first(&descent, peer(4)).await, Err(Refused));
        assert_eq!(at_first(&descent, peer(6)).await.map(drop), Ok(()));
        let untold = || Err(io::ErrorKind::Unsupported.into());
        assert_eq!(at_first(&descent, untold()).await, Err(Refused));
        assert_eq!(descent.unidentified().load(Ordering::Relaxed), 0);
        let (descent, _) = by_number(IdentifyPeers::WhenPossible, Duration::ZERO);
        assert_eq!(at_first(&descent, untold()).await.map(drop), Ok(()));
        // Gone is no riddle.
        assert_eq!(at_first(&descent, Err(io::ErrorKind::NotConnected.into())).await, Err(Refused));
        assert_eq!(descent.unidentified().load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_trouble_is_told_once_in_ten_seconds_with_a_count() {
        let (Descent { shared, .. }, _) = by_number(IdentifyPeers::Required, Duration::ZERO);
        assert_eq!(shared.may_tell(0), Some(0));
        assert_eq!((shared.may_tell(0), shared.may_tell(0)), (None, None));
        assert_eq!(shared.may_tell(1), Some(0), "another kind");
        tokio::time::advance(TELL_EVERY).await;
        assert_eq!(shared.may_tell(0), Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_could_not_be_told_is_looked_up_again_when_it_calls_and_counted_no_more_once_it_is_told()
     {
        // What the searches find, one after the other.
        let unknown = || Kin::Unknown("it is a test");
        let ours = Kin::Ours(Somebody { pid: 7, command: "x".to_owned() });
        for (told, is_served) in [(ours, false), (Kin::Stranger, true), (Kin::Gone, false)] {
            let found = Arc::new(Mutex::new(vec![told, unknown(), unknown()]));
            let look = move |questions: Vec<Question>| {
                for question in questions {
                    let kin = found.lock().unwrap().pop();
                    question.settle(kin.expect("no search without a need"));
                }
                futures::future::ready(()).boxed()
            };
            let descent = Descent::with(IdentifyPeers::WhenPossible, Arc::new(look));
            let count = descent.unidentified();
            let verdict = descent.verdict(peer(4));
            let refused = tokio::spawn({
                let verdict = verdict.clone();
                async move { verdict.refused().await }
            });
            assert_eq!(verdict.on_call().await, Ok(()));
            assert_eq!(count.load(Ordering::Relaxed), 1);
            assert_eq!(verdict.on_call().await.is_ok(), is_served);
            assert_eq!(count.load(Ordering::Relaxed), 0);
            // For good.
            assert_eq!(verdict.on_call().await.is_ok(), is_served);
            if is_served {
                assert!(!refused.is_finished());
            } else {
                refused.await.unwrap();
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_can_never_be_told_is_looked_up_once_a_second_at_most() {
        let (descent, looks) = by_number(IdentifyPeers::WhenPossible, Duration::ZERO);
        let verdict = descent.verdict(peer(4));
        for _ in 0..100 {
            assert_eq!(verdict.on_call().await, Ok(()));
        }
        let first = 1 + FIRST_CALLS as usize;
        assert_eq!(looks.load(Ordering::Relaxed), first);
        tokio::time::advance(LOOK_EVERY).await;
        for _ in 0..100 {
            assert_eq!(verdict.on_call().await, Ok(()));
        }
        assert_eq!(looks.load(Ordering::Relaxed), first + 1);
        assert_eq!(descent.unidentified().load(Ordering::Relaxed), 1);
        // No number is of no use, however often it is looked at.
        let verdict = descent.verdict(peer(0));
        for _ in 0..100 {
            assert_eq!(verdict.on_call().await, Ok(()));
        }
        assert_eq!(looks.load(Ordering::Relaxed), first + 2);
    }
}
