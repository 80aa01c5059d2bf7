//! Any bytes as what somebody asks of the API: a body, or a query.

use heartwatch_controller::api::asked::Asked;

/// Most of a refusal, beyond what it quotes of the bytes themselves, bytes.
const WORDS_MAX: usize = 1_000;

/// Any bytes as a request: the first one, a digit, says which kind of body (`Asked::ALL`), the rest is it.
///
/// # Panics
/// If reading it does, if a refusal says nothing or much more than it was asked, or if what was understood is
/// understood otherwise once it is written down.
pub fn asked(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    let kinds = Asked::ALL;
    let kind = kinds[usize::from(first.wrapping_sub(b'0')) % kinds.len()];
    match kind.read(body) {
        Err(problem) => {
            let len = problem.detail.len();
            assert!(len > 0, "{kind:?} is refused without a reason");
            // A quoted character may be written as an escape of ten.
            assert!(len <= WORDS_MAX + 10 * body.len(), "{kind:?}: {len} bytes of reasons");
            assert_eq!(problem.status / 100, 4, "{kind:?}: the asker's fault is called ours");
        }
        Ok(Some(once)) => match kind.read(&once) {
            Ok(Some(twice)) => assert_eq!(once, twice, "{kind:?}"),
            other => panic!("{kind:?}: what was understood is not understood again: {other:?}"),
        },
        Ok(None) => {}
    }
}
