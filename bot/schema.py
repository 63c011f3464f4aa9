"""The tables of the store, and the migrations that lead to them."""

from __future__ import annotations

from enum import StrEnum

from bot.domain import AnswerState, ChatKind, Finish, Language, Platform, Source, Wanted
from bot.learning import LessonKind, LessonState, NightState
from bot.rules import texts_check, votes_check

APPLICATION_ID = 0x46415245  # "FARE": how we know our own file


def _one_of(kind: type[StrEnum]) -> str:
    """The values of an enum for a CHECK. A new value needs a migration: a test pins the schema."""
    return "(" + ", ".join(f"'{value}'" for value in kind) + ")"


# AUTOINCREMENT where ids live on in buttons: the id of an erased answer is never given again.
_CHAT = f"""
CREATE TABLE fans (
  key TEXT PRIMARY KEY,
  platform TEXT NOT NULL CHECK (platform IN {_one_of(Platform)}),
  language TEXT NOT NULL CHECK (language IN {_one_of(Language)}),
  first_seen INTEGER NOT NULL,
  last_seen INTEGER NOT NULL
) STRICT;

CREATE TABLE chats (
  key TEXT PRIMARY KEY,
  platform TEXT NOT NULL CHECK (platform IN {_one_of(Platform)}),
  id TEXT NOT NULL,
  thread TEXT,
  kind TEXT NOT NULL CHECK (kind IN {_one_of(ChatKind)})
) STRICT;

CREATE TABLE personas (
  version TEXT PRIMARY KEY,
  text TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE TABLE inbox (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  platform TEXT NOT NULL CHECK (platform IN {_one_of(Platform)}),
  update_id TEXT NOT NULL,
  received_at INTEGER NOT NULL,
  message TEXT,
  UNIQUE (platform, update_id)
) STRICT;

CREATE INDEX inbox_pending ON inbox (id) WHERE message IS NOT NULL;

CREATE TABLE conversations (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  chat_key TEXT NOT NULL REFERENCES chats ON DELETE CASCADE,
  started_at INTEGER NOT NULL,
  used_at INTEGER NOT NULL,
  closed_at INTEGER
) STRICT;

CREATE INDEX conversations_chat ON conversations (chat_key);

CREATE UNIQUE INDEX conversations_active ON conversations (chat_key) WHERE closed_at IS NULL;

CREATE TABLE questions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  conversation_id INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
  parent_id INTEGER REFERENCES answers ON DELETE SET NULL,
  fan_key TEXT NOT NULL REFERENCES fans ON DELETE CASCADE,
  platform TEXT NOT NULL CHECK (platform IN {_one_of(Platform)}),
  update_id TEXT NOT NULL,
  message_id TEXT,
  source TEXT NOT NULL CHECK (source IN {_one_of(Source)}),
  text TEXT NOT NULL,
  quoted TEXT,
  created_at INTEGER NOT NULL,
  UNIQUE (platform, update_id)
) STRICT;

CREATE INDEX questions_conversation ON questions (conversation_id);

CREATE INDEX questions_parent ON questions (parent_id);

CREATE INDEX questions_fan ON questions (fan_key);

CREATE TABLE answers (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  question_id INTEGER NOT NULL REFERENCES questions ON DELETE CASCADE,
  platform TEXT NOT NULL CHECK (platform IN {_one_of(Platform)}),
  update_id TEXT NOT NULL,
  attempt INTEGER NOT NULL CHECK (attempt > 0),
  state TEXT NOT NULL CHECK (state IN {_one_of(AnswerState)}),
  text TEXT NOT NULL DEFAULT '',
  finish TEXT CHECK (finish IN {_one_of(Finish)}),
  error TEXT,
  crashes INTEGER NOT NULL DEFAULT 0,
  persona TEXT NOT NULL REFERENCES personas,
  model TEXT NOT NULL,
  prompt TEXT,
  created_at INTEGER NOT NULL,
  revision TEXT,
  prompt_tokens INTEGER,
  cached_tokens INTEGER,
  completion_tokens INTEGER,
  queued REAL,
  first_token REAL,
  total REAL,
  UNIQUE (question_id, attempt),
  UNIQUE (platform, update_id)
) STRICT;

CREATE TABLE deliveries (
  answer_id INTEGER NOT NULL REFERENCES answers ON DELETE CASCADE,
  piece INTEGER NOT NULL CHECK (piece >= 0),
  chat_key TEXT NOT NULL REFERENCES chats ON DELETE CASCADE,
  message_id TEXT,
  PRIMARY KEY (answer_id, piece)
) STRICT;

CREATE INDEX deliveries_message ON deliveries (message_id);

CREATE INDEX deliveries_chat ON deliveries (chat_key);

CREATE TABLE votes (
  answer_id INTEGER NOT NULL REFERENCES answers ON DELETE CASCADE,
  fan_key TEXT NOT NULL REFERENCES fans ON DELETE CASCADE,
  value INTEGER NOT NULL CHECK (value IN (-1, 1)),
  source TEXT NOT NULL CHECK (source IN {_one_of(Source)}),
  via TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  PRIMARY KEY (answer_id, fan_key)
) STRICT;

CREATE INDEX votes_fan ON votes (fan_key);

CREATE TABLE corrections (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  answer_id INTEGER NOT NULL REFERENCES answers ON DELETE CASCADE,
  fan_key TEXT NOT NULL REFERENCES fans ON DELETE CASCADE,
  text TEXT NOT NULL,
  source TEXT NOT NULL CHECK (source IN {_one_of(Source)}),
  created_at INTEGER NOT NULL,
  UNIQUE (answer_id, fan_key, text)
) STRICT;

CREATE INDEX corrections_fan ON corrections (fan_key);

CREATE TABLE correction_asks (
  chat_key TEXT NOT NULL REFERENCES chats ON DELETE CASCADE,
  message_id TEXT NOT NULL,
  answer_id INTEGER NOT NULL REFERENCES answers ON DELETE CASCADE,
  PRIMARY KEY (chat_key, message_id)
) STRICT;

CREATE INDEX correction_asks_message ON correction_asks (message_id);

CREATE INDEX correction_asks_answer ON correction_asks (answer_id);

CREATE TABLE settings (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT
"""

_LEARN = f"""
ALTER TABLE fans ADD COLUMN tell INTEGER NOT NULL DEFAULT 0 CHECK (tell IN (0, 1));

ALTER TABLE answers ADD COLUMN source TEXT CHECK (source IN {_one_of(Source)});

ALTER TABLE votes ADD COLUMN permission TEXT NOT NULL DEFAULT '';

ALTER TABLE votes ADD COLUMN trains INTEGER NOT NULL DEFAULT 0
  CHECK (trains IN (0, 1)) CHECK ({votes_check()});

CREATE TABLE consents (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  fan_key TEXT NOT NULL REFERENCES fans ON DELETE CASCADE,
  given INTEGER CHECK (given IN (0, 1)),
  version INTEGER NOT NULL,
  source TEXT NOT NULL CHECK (source IN {_one_of(Source)}),
  created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX consents_fan ON consents (fan_key);

CREATE TABLE lessons (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  kind TEXT NOT NULL CHECK (kind IN {_one_of(LessonKind)}),
  fan_key TEXT NOT NULL REFERENCES fans ON DELETE CASCADE,
  chat_key TEXT NOT NULL REFERENCES chats ON DELETE CASCADE,
  source TEXT NOT NULL CHECK (source IN {_one_of(Source)}),
  question TEXT NOT NULL,
  answer TEXT NOT NULL,
  answer_id INTEGER REFERENCES answers ON DELETE SET NULL,
  state TEXT NOT NULL CHECK (state IN {_one_of(LessonState)}),
  confirmed INTEGER NOT NULL DEFAULT 0 CHECK (confirmed IN (0, 1)),
  decided_by TEXT,
  decided_at INTEGER,
  learnt_in TEXT,
  created_at INTEGER NOT NULL,
  UNIQUE (fan_key, question, answer),
  CHECK ({texts_check()})
) STRICT;

CREATE INDEX lessons_chat ON lessons (chat_key);

CREATE INDEX lessons_answer ON lessons (answer_id);

CREATE INDEX lessons_state ON lessons (state, id);

CREATE TABLE asks (
  chat_key TEXT NOT NULL REFERENCES chats ON DELETE CASCADE,
  message_id TEXT NOT NULL,
  what TEXT NOT NULL CHECK (what IN {_one_of(Wanted)}),
  about TEXT NOT NULL,
  PRIMARY KEY (chat_key, message_id)
) STRICT;

CREATE INDEX asks_message ON asks (message_id);

INSERT INTO asks SELECT chat_key, message_id, 'correction', answer_id FROM correction_asks;

DROP TABLE correction_asks;

CREATE TABLE nights (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  day TEXT NOT NULL,
  started_by TEXT NOT NULL,
  report_to TEXT,
  state TEXT NOT NULL CHECK (state IN {_one_of(NightState)}),
  stage TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT '',
  details TEXT NOT NULL DEFAULT '{{}}',
  revision TEXT,
  started_at INTEGER NOT NULL,
  ended_at INTEGER
) STRICT;

CREATE UNIQUE INDEX nights_one ON nights (state) WHERE state = 'running';

CREATE UNIQUE INDEX nights_day ON nights (day) WHERE started_by = 'schedule'
"""  # noqa: S608 # made of our own text only

_RELEASE = "ALTER TABLE fans ADD COLUMN released INTEGER"

# Append only; statements are parted by blank lines. `PRAGMA user_version` counts those applied.
MIGRATIONS = (_CHAT, _LEARN, _RELEASE)
