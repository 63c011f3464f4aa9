"""What may be learnt from which source: the platforms' rules, as data in one place.

Read in November 2026: Discord's Developer Policy (no message content for training without its
express permission; text typed into a command or form only for the stated function) and Telegram's
Bot Developer Terms 4.3 (data submitted directly and voluntarily, with explicit and revocable
consent). The store's CHECKs are made from this table, and `allowed` is asked where rows are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from bot.domain import Source


class Need(StrEnum):
    """What there must be before something trains the model."""

    CONSENT = "consent"
    CONFIRMED = "confirmed"  # consent, and a yes for each item
    SWITCH = "switch"  # consent, and the admin has turned it on
    PERMISSION = "permission"  # consent, and the admin has recorded the platform's written word
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class Rule:
    """What votes and what taught or corrected texts of a source need."""

    votes: Need
    texts: Need


RULES = {
    Source.WEB: Rule(Need.CONSENT, Need.CONSENT),
    Source.CONSOLE: Rule(Need.CONSENT, Need.CONSENT),
    Source.TELEGRAM_PRIVATE: Rule(Need.CONSENT, Need.CONFIRMED),
    Source.TELEGRAM_GROUP: Rule(Need.NEVER, Need.NEVER),
    Source.DISCORD_COMMAND: Rule(Need.SWITCH, Need.CONSENT),
    Source.DISCORD_MESSAGE: Rule(Need.PERMISSION, Need.NEVER),
}


@dataclass(frozen=True, slots=True)
class Grant:
    """What the admin has decided: votes on Discord, and Discord's written permission if any."""

    discord_votes: bool = False
    permission: str = ""

    def votes(self, *sources: Source) -> bool:
        """Whether a vote may train, given its source and that of what was voted on."""
        return all(self._met(RULES[source].votes) for source in sources)

    def _met(self, need: Need) -> bool:
        match need:
            case Need.SWITCH:
                return self.discord_votes
            case Need.PERMISSION:
                return bool(self.permission)
            case _:
                return need is not Need.NEVER


def teachable(*sources: Source) -> bool:
    """Whether a text may ever train, given its source and that of the question it answers."""
    return all(RULES[source].texts is not Need.NEVER for source in sources)


def votes_check() -> str:
    """For the store: which votes may be marked as training."""
    free = [
        source for source, rule in RULES.items() if rule.votes not in {Need.NEVER, Need.PERMISSION}
    ]
    granted = [source for source, rule in RULES.items() if rule.votes is Need.PERMISSION]
    return (
        f"trains = 0 OR source IN ({_listed(free)})"
        f" OR (source IN ({_listed(granted)}) AND permission <> '')"
    )


def texts_check() -> str:
    """For the store: which lessons may be kept, and which of them need the fan's yes first."""
    free = [source for source, rule in RULES.items() if rule.texts is not Need.NEVER]
    asked = [source for source, rule in RULES.items() if rule.texts is Need.CONFIRMED]
    return (
        f"source IN ({_listed(free)})"
        " AND (state IN ('waiting', 'withdrawn') OR confirmed = 1"
        f" OR source NOT IN ({_listed(asked)}))"
    )


def _listed(sources: list[Source]) -> str:
    return ", ".join(f"'{source}'" for source in sources)
