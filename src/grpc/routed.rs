//! The metadata `x-codex-context`: a copy of the context id, for whatever routes calls by it.

use tonic::Request;
use tonic::metadata::MetadataMap;

use crate::model::refusal::{Refusal, show};
use crate::pb;
use crate::pb::{attach_turn_request, read_thread_request};

/// Its name.
const CONTEXT: &str = "x-codex-context";

/// A request that names contexts, or may: the paths of their fields, and their ids.
pub(super) trait NamesContexts {
    /// None where it names none.
    fn contexts(&self) -> Vec<(&'static str, &str)>;
}

/// Refuses a request whose metadata names another context than its field, for which it may have been routed
/// to the wrong sidecar. Where it names several, one of them has to be it.
///
/// # Errors
/// [`Refusal::InvalidInput`] of that field.
pub(super) fn check<T: NamesContexts>(request: &Request<T>) -> Result<(), Refusal> {
    fits(request.metadata(), &request.get_ref().contexts())
}

/// What was read, unless its routing is at fault; the faults of both where both have some.
pub(super) fn read<T>(routed: Result<(), Refusal>, read: Result<T, Refusal>) -> Result<T, Refusal> {
    match (routed, read) {
        (Ok(()), read) => read,
        (Err(Refusal::InvalidInput(mut faults)), Err(Refusal::InvalidInput(more))) => {
            faults.extend(more);
            Err(Refusal::InvalidInput(faults))
        }
        (Err(refusal), _) => Err(refusal),
    }
}

fn fits(metadata: &MetadataMap, contexts: &[(&'static str, &str)]) -> Result<(), Refusal> {
    let Some((field, context_id)) = contexts.first() else { return Ok(()) };
    for value in metadata.get_all(CONTEXT) {
        let said = value.as_encoded_bytes().trim_ascii();
        // An id that is not ASCII may be there percent-encoded.
        let decoded = decoded(said);
        let is_it = |id: &str| [said, &decoded].contains(&id.trim().as_bytes());
        if !contexts.iter().any(|(_, id)| is_it(id)) {
            return Err(Refusal::field(
                *field,
                format!(
                    "is {}, and the metadata {CONTEXT} says {}; send the same in both, or leave the \
                     metadata out",
                    show(context_id.trim()),
                    show(&String::from_utf8_lossy(said))
                ),
            ));
        }
    }
    Ok(())
}

/// The id of a field that holds one, and of one that holds a reference to it.
macro_rules! names {
    ($request:ty, $field:ident) => {
        impl NamesContexts for $request {
            fn contexts(&self) -> Vec<(&'static str, &str)> {
                vec![(stringify!($field), &self.$field)]
            }
        }
    };
    ($request:ty, $field:ident.context_id) => {
        impl NamesContexts for $request {
            fn contexts(&self) -> Vec<(&'static str, &str)> {
                let context = self.$field.iter();
                context
                    .map(|it| (concat!(stringify!($field), ".context_id"), &*it.context_id))
                    .collect()
            }
        }
    };
}

names!(pb::RunTurnRequest, context_id);
names!(pb::GetContextRequest, context_id);
names!(pb::BindContextRequest, context_id);
names!(pb::DeleteContextRequest, context_id);
names!(pb::ListTurnsRequest, context.context_id);
names!(pb::RevertContextRequest, context.context_id);

impl NamesContexts for pb::RunTurnUnaryRequest {
    fn contexts(&self) -> Vec<(&'static str, &str)> {
        // As of the turn that is in it, whose faults get the rest of their paths together.
        self.request.iter().flat_map(NamesContexts::contexts).collect()
    }
}

impl NamesContexts for pb::AttachTurnRequest {
    fn contexts(&self) -> Vec<(&'static str, &str)> {
        match &self.target {
            Some(attach_turn_request::Target::Context(context)) => {
                vec![("context.context_id", &context.context_id)]
            }
            Some(attach_turn_request::Target::TurnId(_)) | None => Vec::new(),
        }
    }
}

impl NamesContexts for pb::ReadThreadRequest {
    fn contexts(&self) -> Vec<(&'static str, &str)> {
        match &self.target {
            Some(read_thread_request::Target::Context(context)) => {
                vec![("context.context_id", &context.context_id)]
            }
            Some(read_thread_request::Target::ThreadId(_)) | None => Vec::new(),
        }
    }
}

impl NamesContexts for pb::ForkContextRequest {
    fn contexts(&self) -> Vec<(&'static str, &str)> {
        let named = [("source.context_id", &self.source), ("target.context_id", &self.target)];
        let named = named.into_iter().filter_map(|(path, it)| Some((path, it.as_ref()?)));
        named.map(|(path, it)| (path, &*it.context_id)).collect()
    }
}

/// Without percent-encoding.
fn decoded(text: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let byte = more.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
            let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
            u8::from_str_radix(digits, 16).ok()
        });
        decoded.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { more.get(2..).unwrap_or_default() } else { more };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_context_of_the_metadata_is_that_of_the_request() {
        let sent = |values: &[&str]| {
            let mut metadata = MetadataMap::new();
            for value in values {
                metadata.append(CONTEXT, value.parse().unwrap());
            }
            metadata
        };
        let asked = |values, context_id| fits(&sent(values), &[("context_id", context_id)]);
        for (values, context_id) in [
            (&[][..], "anything"),
            (&["ticket-1"], " ticket-1 "),
            (&["ticket-1", "ticket-1"], "ticket-1"),
            (&["100%", "100%25"], "100%"),
            (&["gr%C3%BCn"], "grün"),
        ] {
            assert_eq!(asked(values, context_id), Ok(()), "{values:?}");
        }
        for (values, context_id) in [
            (&["ticket-2"][..], "ticket-1"),
            (&["ticket-1", "ticket-2"], "ticket-1"),
            (&["Ticket-1"], "ticket-1"),
            (&["ticket-1"], ""),
            (&[""], "ticket-1"),
            (&["a%4"], "a@"),
        ] {
            let refusal = asked(values, context_id).unwrap_err();
            let Refusal::InvalidInput(faults) = refusal else { panic!("{refusal:?}") };
            assert_eq!(faults[0].field, "context_id", "{values:?}");
        }
        assert_eq!(fits(&sent(&["any"]), &[]), Ok(()));
        let of_fork = [("source.context_id", "a"), ("target.context_id", "b")];
        assert_eq!(fits(&sent(&["a"]), &of_fork), Ok(()));
        assert_eq!(fits(&sent(&["b"]), &of_fork), Ok(()));
        fits(&sent(&["c"]), &of_fork).unwrap_err();
    }
}
