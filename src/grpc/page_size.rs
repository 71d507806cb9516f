//! How many entries a page is to have.

use crate::model::refusal::Refusal;

/// The field `page_size` of a request for a page.
///
/// # Errors
/// It is negative.
pub(super) fn of(page_size: i32, default: usize, most: usize) -> Result<usize, Refusal> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(most)),
        Err(_) => {
            let fault =
                format!("{page_size} is negative; ask for 0 (which means {default}) to {most}");
            Err(Refusal::field("page_size", fault))
        }
    }
}
