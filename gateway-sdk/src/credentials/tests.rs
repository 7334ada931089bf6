//! When a token is taken, and what is never told. The clock stands still but where a test
//! moves it.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::retry::{Verdict, classify};

const BACKOFF: Backoff = Backoff { base: Duration::from_millis(100), cap: Duration::from_secs(30) };

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

async fn attached(access: &Access) -> Result<(String, Ticket), Status> {
    let mut request = Request::new(());
    let ticket = access.attach(&mut request).await?;
    let header = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
    Ok((header.unwrap_or_default(), ticket))
}

async fn header(access: &Access) -> Result<String, Status> {
    Ok(attached(access).await?.0)
}

/// A callback that numbers its tokens, and how often it was called.
fn numbered(change: impl Fn(u32) -> Result<Token, io::Error> + Send + Sync + 'static) -> (Access, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let change = Arc::new(change);
    let credentials = Credentials::callback(move || {
        let (call, change) = (counted.fetch_add(1, Ordering::SeqCst) + 1, Arc::clone(&change));
        async move {
            tokio::task::yield_now().await;
            change(call)
        }
    });
    (Access::new(Some(credentials), BACKOFF), calls)
}

fn refuse(access: &Access, ticket: Ticket) -> Option<AccessProblem> {
    AccessProblem::of(&access.judge(Status::unauthenticated("no"), ticket))
}

#[test]
fn expiry_of_a_jwt_is_read_and_nothing_else() {
    let now = SystemTime::UNIX_EPOCH + seconds(1_000);
    let jwt = |payload: &str| format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload));
    for (token, left) in [
        (jwt(r#"{"exp":1060}"#), Some(seconds(60))),
        (jwt(r#"{"exp":1060.5,"sub":"a"}"#), Some(Duration::from_millis(60_500))),
        (jwt(r#"{"exp":900}"#), Some(Duration::ZERO)),
        (jwt(r#"{"exp":"1060"}"#), None),
        (jwt(r#"{"exp":-1}"#), None),
        (jwt(r#"{"exp":1e300}"#), None),
        (jwt("{}"), None),
        (jwt("not json"), None),
        ("opaque".to_owned(), None),
        ("a.b.c".to_owned(), None),
        (String::new(), None),
    ] {
        assert_eq!(lifetime(&token, now), left, "{token}");
    }
}

#[tokio::test]
async fn nothing_shows_a_token() {
    let token = Token::new("hunter2").valid_for(seconds(5));
    assert_eq!(format!("{token:?}"), "Token { valid_for: Some(5s), .. }");
    let credentials = Credentials::token("hunter2");
    let access = Access::new(Some(credentials.clone()), BACKOFF);
    let mut request = Request::new(());
    access.attach(&mut request).await.unwrap();
    for text in [format!("{credentials:?}"), format!("{access:?}"), format!("{request:?}")] {
        assert!(!text.contains("hunter2"), "{text}");
    }
    let bad = Access::new(Some(Credentials::token("hunter2\n hunter2")), BACKOFF);
    let refused = header(&bad).await.unwrap_err();
    assert_eq!(refused.message(), "the token gave 16 bytes that are no token, allowed are 1 to 12288 of visible ASCII");
    assert_eq!(AccessProblem::of(&refused), Some(AccessProblem::NoToken));
}

#[tokio::test(start_paused = true)]
async fn token_is_taken_anew_before_it_expires() {
    let (access, calls) = numbered(|call| Ok(Token::new(format!("t{call}")).valid_for(seconds(600))));
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    let (_, ticket) = attached(&access).await.unwrap();
    assert_eq!(ticket.renew_at.unwrap() - Instant::now(), seconds(540));
    tokio::time::advance(seconds(539)).await;
    assert_eq!(header(&access).await.unwrap(), "Bearer t1");
    tokio::time::advance(seconds(1)).await;
    assert_eq!(header(&access).await.unwrap(), "Bearer t2");
}

#[tokio::test(start_paused = true)]
async fn token_that_holds_for_ever_is_no_panic() {
    let (access, calls) = numbered(|call| Ok(Token::new(format!("t{call}")).valid_for(Duration::MAX)));
    for _ in 0..10 {
        assert_eq!(header(&access).await.unwrap(), "Bearer t1");
        tokio::time::advance(seconds(86_400)).await;
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn token_without_an_expiry_is_used_until_it_is_refused() {
    let (access, calls) = numbered(|call| Ok(Token::new(format!("t{call}"))));
    for _ in 0..10 {
        assert_eq!(header(&access).await.unwrap(), "Bearer t1");
        tokio::time::advance(seconds(86_400)).await;
    }
    let (_, ticket) = attached(&access).await.unwrap();
    assert_eq!(refuse(&access, ticket), Some(AccessProblem::Refused));
    assert_eq!(header(&access).await.unwrap(), "Bearer t2");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn hundred_calls_that_are_refused_at_once_take_one_token() {
    let (access, calls) = numbered(|call| Ok(Token::new(format!("t{call}"))));
    let (_, first) = attached(&access).await.unwrap();
    let once = |_| async {
        refuse(&access, first);
        header(&access).await.unwrap()
    };
    let taken = futures::future::join_all((0..100).map(once)).await;
    assert!(taken.iter().all(|header| header == "Bearer t2"), "{taken:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    // A call that went with the first is refused late: the second is not to blame.
    assert!(refuse(&access, first).is_some());
    assert_eq!(header(&access).await.unwrap(), "Bearer t2");
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_refused_again_and_again_are_taken_ever_more_slowly() {
    let (access, calls) = numbered(|call| Ok(Token::new(format!("t{call}"))));
    for _ in 0..6_000 {
        let (_, ticket) = attached(&access).await.unwrap();
        refuse(&access, ticket);
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    // A minute of attempts. Two at once, then after 0.4, 0.8, 1.6 … s.
    let calls = calls.load(Ordering::SeqCst);
    assert!((5..=10).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn token_that_holds_is_kept_while_there_is_no_other() {
    let (access, calls) = numbered(|call| match call {
        1 | 20.. => Ok(Token::new(format!("t{call}")).valid_for(seconds(300))),
        _ => Err(io::Error::other("the provider is away")),
    });
    header(&access).await.unwrap();
    tokio::time::advance(seconds(250)).await;
    let (text, ticket) = attached(&access).await.unwrap();
    assert_eq!(text, "Bearer t1");
    // A stream that begins now does not move over at once, and again, and again.
    assert!(ticket.renew_at.unwrap() > Instant::now());
    for _ in 0..1_000 {
        assert_eq!(header(&access).await.unwrap(), "Bearer t1");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 2, "failures are waited after");
    // Expired, it is refused, and says so; and then there is a new one.
    tokio::time::advance(seconds(60)).await;
    assert_eq!(refuse(&access, ticket), Some(AccessProblem::Expired));
    while calls.load(Ordering::SeqCst) < 20 {
        header(&access).await.unwrap();
        tokio::time::advance(seconds(1)).await;
    }
    assert_eq!(header(&access).await.unwrap(), "Bearer t20");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_callback_that_hangs_while_the_token_holds() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let credentials = Credentials::callback(move || {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        async move {
            if call > 0 {
                std::future::pending::<()>().await;
            }
            Ok::<_, io::Error>(Token::new("t1").valid_for(seconds(300)))
        }
    });
    let access = Access::new(Some(credentials), BACKOFF);
    header(&access).await.unwrap();
    tokio::time::advance(seconds(250)).await;
    let taking = tokio::spawn({
        let access = access.clone();
        async move { header(&access).await }
    });
    while calls.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    let since = Instant::now();
    for _ in 0..100 {
        let (text, ticket) = attached(&access).await.unwrap();
        assert_eq!((text.as_str(), Instant::now()), ("Bearer t1", since));
        assert!(ticket.renew_at.unwrap() > since, "a stream that begins now does not end at once");
    }
    // It ends with the time that a callback has.
    assert_eq!(taking.await.unwrap().unwrap(), "Bearer t1");
    assert_eq!(since.elapsed(), TAKE_TIMEOUT);

    // One that is refused holds no more: whoever comes waits for the next.
    tokio::time::advance(seconds(10)).await;
    let (_, ticket) = attached(&access).await.unwrap();
    assert!(since.elapsed() >= seconds(30), "this call has waited by itself");
    refuse(&access, ticket);
    tokio::time::advance(seconds(1)).await;
    let since = Instant::now();
    let both = futures::future::join(header(&access), header(&access)).await;
    assert!(both.0.is_ok() && both.1.is_ok() && since.elapsed() >= TAKE_TIMEOUT, "{both:?}");
}

#[tokio::test(start_paused = true)]
async fn callback_that_fails_panics_or_hangs_is_told_and_tried_again() {
    let (access, _) = numbered(|call| match call {
        1 => Err(io::Error::other("the provider is away")),
        2 => panic!("a callback that panics harms nobody"),
        _ => Ok(Token::new("t")),
    });
    for why in ["the credentials' callback failed: the provider is away", "the credentials' callback panicked"] {
        let refused = header(&access).await.unwrap_err();
        assert_eq!(refused.message(), why);
        assert_eq!(classify(&refused), Verdict::Retry { after: None });
        // Not asked again before its time.
        assert_eq!(header(&access).await.unwrap_err().message(), why);
        tokio::time::advance(seconds(1)).await;
    }
    assert_eq!(header(&access).await.unwrap(), "Bearer t");

    let silent = Credentials::callback(futures::future::pending::<Result<Token, io::Error>>);
    let refused = header(&Access::new(Some(silent), BACKOFF)).await.unwrap_err();
    assert_eq!(refused.message(), "the credentials' callback gave no token within 10s");
}

#[tokio::test]
async fn file_is_read_again_when_its_token_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let access = Access::new(Some(Credentials::file(&path)), Backoff { base: Duration::ZERO, cap: Duration::ZERO });
    let refused = header(&access).await.unwrap_err();
    assert!(refused.message().contains("token: No such file"), "{refused}");
    std::fs::write(&path, "one\n").unwrap();
    assert_eq!(header(&access).await.unwrap(), "Bearer one");
    std::fs::write(&path, " two ").unwrap();
    let (text, ticket) = attached(&access).await.unwrap();
    assert_eq!(text, "Bearer one");
    refuse(&access, ticket);
    assert_eq!(header(&access).await.unwrap(), "Bearer two");
}

#[tokio::test(start_paused = true)]
async fn one_token_stays_whatever_is_said_of_it() {
    let access = Access::new(Some(Credentials::token("t")), BACKOFF);
    assert!(!access.renews());
    for _ in 0..3 {
        let (text, ticket) = attached(&access).await.unwrap();
        assert_eq!((text.as_str(), ticket.renew_at), ("Bearer t", None));
        assert_eq!(refuse(&access, ticket), Some(AccessProblem::Refused));
    }
    assert_eq!(refuse(&Access::default(), Ticket::default()), Some(AccessProblem::Missing));
}
