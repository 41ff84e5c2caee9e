//! Bad input never ends a process: parsers and drivers of others that panic at it are run in here, and what they said
//! comes back as an error. Our own code reports errors and has no need of this.

use std::{any::Any, cell::Cell, panic, sync::Once};

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs somebody else's code; its panic is an error of one line, and nothing is printed.
///
/// # Errors
/// What the panic said.
pub fn contain<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !IS_QUIET.get() {
                usual(panic);
            }
        }));
    });
    let was_quiet = IS_QUIET.replace(true);
    // What `work` changed is dropped with it by every caller.
    let done = panic::catch_unwind(panic::AssertUnwindSafe(work));
    IS_QUIET.set(was_quiet);
    done.map_err(|panic| said(&*panic))
}

/// What a panic says, on one line.
fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").lines().next().unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_is_not_hidden() {
        assert_eq!(contain(|| 3), Ok(3));
        let nested = contain(|| contain(|| panic!("the {}\nand more", "inner")));
        assert_eq!(nested, Ok(Err::<(), _>("the inner".into())));
        assert_eq!(contain(|| -> u8 { panic!("plain") }), Err("plain".into()));
        assert!(!IS_QUIET.get());
    }
}
