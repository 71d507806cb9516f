//! All faults of a request at once.

use crate::model::refusal::{Faults, Refusal};

/// All three, or the faults of all of them.
///
/// # Errors
/// [`Refusal::InvalidInput`].
pub(super) fn all_of<A, B, C>(
    one: Result<A, Refusal>,
    two: Result<B, Refusal>,
    three: Result<C, Refusal>,
) -> Result<(A, B, C), Refusal> {
    match (one, two, three) {
        (Ok(one), Ok(two), Ok(three)) => Ok((one, two, three)),
        (one, two, three) => {
            let mut faults = Faults::default();
            for refusal in [one.err(), two.err(), three.err()].into_iter().flatten() {
                match refusal {
                    Refusal::InvalidInput(violations) => {
                        for violation in violations {
                            faults.add(violation.field, violation.description);
                        }
                    }
                    other => faults.add("", other.to_string()),
                }
            }
            Err(Refusal::InvalidInput(faults.0))
        }
    }
}
