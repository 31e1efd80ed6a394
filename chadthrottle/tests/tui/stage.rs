//! The state with a terminal of the test's own: keys in, text out.

use std::{collections::BTreeMap, sync::Arc};

use chadthrottle::{
    Error,
    backend::Site,
    model::{Counters, DirectionReport, LimitId, LimitReport, PerDirection},
    owner::protocol::LimitRequest,
    tui::{
        App, Setup, draw,
        event::{Effect, Event},
        order::{Answer, Order, Outcome, Step},
        theme::ThemeName,
    },
};
use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{Event as TerminalEvent, KeyCode, KeyEvent, KeyModifiers},
    layout::Size,
    text::Span,
};

use crate::scene::Scene;

/// The sizes of the pictures.
pub const SIZES: [(u16, u16); 4] = [(60, 15), (80, 24), (120, 40), (200, 60)];

/// A request that asks for nothing special.
pub fn template() -> LimitRequest {
    LimitRequest {
        targets: Vec::new(),
        scope: chadthrottle::model::Scope::All,
        wait: false,
        rates: PerDirection::default(),
        backends: PerDirection::default(),
        no_fallback: false,
        partial: false,
        duration: None,
        detach: false,
        site: Site::default(),
    }
}

/// The state, and an owner that does what it is asked to.
pub struct Stage {
    pub app: App,
    /// Orders not answered yet.
    pub orders: Vec<Order>,
    /// What the owner holds.
    pub limits: BTreeMap<LimitId, LimitReport>,
    /// Whether it was left.
    pub left: bool,
    last_id: u64,
}

impl Stage {
    /// Nothing is known yet.
    pub fn empty(width: u16, height: u16) -> Self {
        let app = App::new(Setup {
            size: Size { width, height },
            theme: ThemeName::Default,
            ascii: false,
            template: template(),
            read_only: None,
        });
        Self { app, orders: Vec::new(), limits: BTreeMap::new(), left: false, last_id: 100 }
    }

    /// After a minute of the scene.
    pub fn new(width: u16, height: u16, scene: &Scene) -> Self {
        let mut stage = Self::empty(width, height);
        for snapshot in scene.until(60) {
            stage.tell(Event::Snapshot(Arc::new(snapshot)));
        }
        stage
    }

    pub fn tell(&mut self, event: Event) {
        for effect in self.app.handle(event) {
            match effect {
                Effect::Order(order) => self.orders.push(order),
                Effect::Leave => self.left = true,
            }
        }
    }

    pub fn key(&mut self, code: KeyCode) {
        self.tell(Event::Terminal(TerminalEvent::Key(KeyEvent::new(code, KeyModifiers::NONE))));
    }

    /// Presses keys; `\n` is Enter, `\t` Tab, `\x1b` Esc.
    pub fn press(&mut self, keys: &str) {
        for letter in keys.chars() {
            self.key(match letter {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '\x1b' => KeyCode::Esc,
                letter => KeyCode::Char(letter),
            });
        }
    }

    /// Answers the orders, in their order, as an owner that can do everything.
    pub fn answer(&mut self) {
        for Order { number, step, .. } in std::mem::take(&mut self.orders) {
            let outcome = match step {
                Step::Set(request) => self.set(request),
                Step::Replace { old, request } => {
                    let outcome = self.set(request);
                    self.limits.remove(&old);
                    outcome
                }
                Step::Change { id, rates } => {
                    let report = self.limits.get_mut(&id).expect("a limit that is in force");
                    for (direction, rate) in rates.iter() {
                        if let Some(rate) = rate {
                            *report.directions.get_mut(direction) = Some(held(*rate));
                        }
                    }
                    Outcome::Limited(Box::new(report.clone()), Vec::new())
                }
                Step::Move { id, direction, backend } => {
                    let report = self.limits.get_mut(&id).expect("a limit that is in force");
                    let held = report.directions.get_mut(direction).as_mut().expect("a limited direction");
                    held.backend = backend;
                    Outcome::Limited(Box::new(report.clone()), Vec::new())
                }
                Step::Remove { id } => {
                    self.limits.remove(&id).expect("a limit that is in force");
                    Outcome::Done
                }
                Step::Keep(requests) => {
                    assert!(requests.iter().all(|request| request.detach));
                    requests.into_iter().for_each(|request| drop(self.set(request)));
                    Outcome::Done
                }
                Step::Probe => Outcome::Backends(Vec::new()),
            };
            self.tell(Event::Answer(Answer { number, result: Ok(outcome) }));
        }
    }

    /// Refuses the orders.
    pub fn refuse(&mut self, error: &Error) {
        for Order { number, .. } in std::mem::take(&mut self.orders) {
            self.tell(Event::Answer(Answer { number, result: Err(error.clone()) }));
        }
    }

    fn set(&mut self, request: LimitRequest) -> Outcome {
        self.last_id += 1;
        let report = LimitReport {
            id: LimitId(self.last_id),
            targets: request.targets,
            scope: request.scope,
            name: "curl".into(),
            processes: 1,
            sockets: 1,
            directions: PerDirection::from_fn(|direction| request.rates.get(direction).map(held)),
            detached: request.detach,
            client_pid: std::process::id(),
            owner_pid: 4243,
            age: 0.0,
            remaining: request.duration,
            escapes: Vec::new(),
        };
        self.limits.insert(report.id, report.clone());
        Outcome::Limited(Box::new(report), Vec::new())
    }

    /// What is on the screen.
    pub fn text(&self) -> String {
        let terminal = self.terminal();
        let buffer = terminal.backend().buffer();
        let mut text = String::new();
        for row in 0..buffer.area.height {
            let mut line = String::new();
            let mut column = 0;
            while column < buffer.area.width {
                let symbol = buffer[(column, row)].symbol();
                line.push_str(symbol);
                // What lies below the second half of a wide letter is not seen.
                column += Span::raw(symbol).width().max(1) as u16;
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// The picture, with its colours.
    pub fn terminal(&self) -> Terminal<TestBackend> {
        let Size { width, height } = self.app.size;
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(&self.app, frame)).expect("a picture");
        terminal
    }
}

fn held(rate: chadthrottle::model::Rate) -> DirectionReport {
    DirectionReport {
        rate,
        measured: None,
        backend: "ebpf".into(),
        counters: Counters::default(),
        rungs: Vec::new(),
    }
}
