//! The network of a service in virtual time: drain, freeze, resume on another card, against ordinary
//! smoltcp clients and hand-written ones, over a link that loses, doubles and reorders.

mod alone;
mod announcements;
mod client;
mod cold;
mod drains;
mod ends;
mod flood;
mod hand;
mod link;
mod moves;
mod nic;
mod opens;
mod quiet;
mod random;
mod repeats;
mod service;
mod tables;
mod watch;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use client::Role;
use link::Weather;
use random::Random;
use world::{Move, Shape, Switch, World};

/// Runs `run` for each seed on all cores and reports the seeds that fail.
fn seeds(count: u64, run: impl Fn(u64) + Sync) {
    if let Ok(seed) = std::env::var("FERRY_SIM_SEED") {
        return run(seed.parse().expect("FERRY_SIM_SEED is a number"));
    }
    let next = AtomicU64::new(0);
    let failed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    if catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
                        eprintln!("^ seed {seed}");
                        failed.lock().expect("no panic while pushing").push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no panic while pushing");
    assert!(failed.is_empty(), "{} of {count} seeds failed: {failed:?}", failed.len());
}

fn weather(random: &mut Random) -> Weather {
    Weather {
        loss: random.pick(&[0, 0, 5, 20, 50]),
        duplication: random.pick(&[0, 0, 10, 50]),
        reordering: random.pick(&[0, 0, 20, 100]),
        delay: random.pick(&[20, 100, 500, 2_000, 10_000]),
    }
}

fn shape(random: &mut Random) -> Shape {
    Shape {
        clients: random.range(1, 4) as usize,
        users: random.range(1, 5) as usize,
        len: random.pick(&[64, 1_000, 20_000, 100_000]) & !63,
        service_buffer: random.pick(&[1_500, 4_096, 16_384, 65_535, 131_072]),
        client_buffer: random.pick(&[2_000, 8_192, 65_535, 200_000]),
        ring: random.pick(&[2, 16, 256]),
    }
}

fn a_move(random: &mut Random) -> Move {
    Move {
        quiet: random.chance(500).then(|| random.pick(&[0, 1_000, 20_000, 2_500_000])),
        drain: random.pick(&[500, 5_000, 50_000, 300_000]),
        pause: random.pick(&[0, 300, 5_000, 200_000, 1_500_000]),
        switch: random.pick(&[Switch::Held, Switch::Lost]),
        thawed: random.chance(250),
    }
}

/// Streams through moves at random instants: exact, no RST, nothing that TCP does not allow, and every
/// connection still open at the end.
fn streams(seed: u64) {
    let mut random = Random::new(seed);
    let weather = weather(&mut random);
    let shape = shape(&mut random);
    let mut roles = Role::OPEN;
    let turn = random.range(0, 4) as usize;
    roles.rotate_left(turn);
    let mut world = World::new(&shape, &roles, weather, Random::new(random.next()));
    for _ in 0..random.range(1, 4) {
        let instant = world.now() + random.range(0, 30 * (weather.delay + 200));
        world.run(instant, |_| false);
        world.migrate(&a_move(&mut random));
    }
    world.run(u64::MAX, |world| world.all_done());
    assert!(world.all_alive(), "{}", world.describe());
    // What still flies belongs to live connections; after it, one last move and an orderly end.
    world.link.weather = Weather::CLEAR;
    world.run(world.now() + 1_000_000, |world| world.link.is_quiet());
    assert!(world.all_alive(), "{}", world.describe());
    if random.chance(500) {
        // Long enough for all to be quiet.
        world.run(world.now() + 250_000, |_| false);
        world.migrate(&a_move(&mut random));
        assert!(world.all_alive(), "{}", world.describe());
    }
    world.close_all();
    world.run(world.now() + random.range(0, 1_000), |_| false);
    world.migrate(&a_move(&mut random));
    world.run(u64::MAX, |world| world.all_closed());
}

/// Connections that open, work and close while moves happen, over a link that loses: no stream is cut
/// short, nothing is refused, nothing is left.
fn closings(seed: u64) {
    let mut random = Random::new(seed ^ 0xC105_1265);
    // A doubled or late segment of a connection that is gone is refused by right; so neither here.
    let weather = Weather { duplication: 0, reordering: 0, ..weather(&mut random) };
    let shape = Shape { len: random.pick(&[64, 1_024, 9_984]), ..shape(&mut random) };
    let mut roles = [Role::Fetch, Role::Upload, Role::Fetch, Role::PingPong];
    let turn = random.range(0, 4) as usize;
    roles.rotate_left(turn);
    let mut world = World::new(&shape, &roles, weather, Random::new(random.next()));
    let users = world.clients.iter_mut().flat_map(|client| &mut client.users);
    users.for_each(|user| user.closes = true);
    for _ in 0..random.range(1, 5) {
        let instant = world.now() + random.range(0, 10 * (weather.delay + 200));
        world.run(instant, |_| false);
        world.migrate(&a_move(&mut random));
    }
    world.run(u64::MAX, |world| world.all_closed());
    assert!(world.all_done());
}

#[test]
fn openings_and_closings_survive_moves_at_random_instants() {
    seeds(seed_count() / 2, closings);
}

#[test]
fn streams_survive_moves_at_random_instants() {
    seeds(seed_count(), streams);
}

/// 2,000, or FERRY_SIM_SEEDS.
fn seed_count() -> u64 {
    std::env::var("FERRY_SIM_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(2_000)
}
