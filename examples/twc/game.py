"""TextWorldExpress (pip install textworld-express): seeded text games with gold paths, in folds that share no objects."""
from dataclasses import dataclass

from textworld_express import TextWorldExpressEnv


@dataclass(frozen=True)
class Setting:
    """What is played. A won game needs `turns` at most, a good deal more than its gold path; `context` holds them."""
    game: str
    parameters: str
    turns: int
    context: int


def twc(rooms, items, doors, turns, context):
    parameters = f"numLocations={rooms},numItemsToPutAway={items},includeDoors={doors},limitInventorySize=0"
    return Setting("twc", parameters, turns, context)


def cooking(rooms, ingredients, distractors, turns, context):
    parameters = (f"numLocations={rooms},numIngredients={ingredients},numDistractorItems={distractors},"
                  "includeDoors=0,limitInventorySize=0")
    return Setting("cookingworld", parameters, turns, context)


# From easy to hard.
SETTINGS = {
    "twc-1": twc(1, 1, 0, turns=12, context=1024),
    "twc-2": twc(1, 2, 0, turns=16, context=1536),
    "twc-3": twc(1, 3, 0, turns=24, context=2048),
    "twc-2-in-3-rooms": twc(3, 2, 0, turns=30, context=4096),
    "twc-3-in-3-rooms-with-doors": twc(3, 3, 1, turns=40, context=6144),
    "cooking-1": cooking(1, 1, 0, turns=20, context=2048),
    "cooking-2-in-3-rooms": cooking(3, 2, 3, turns=40, context=6144),
}


class World:
    """A simulator. It plays one game at a time and goes to another by playing that again from its beginning, which takes
    milliseconds; so any number of games are under way at once."""

    def __init__(self, setting):
        self.env = TextWorldExpressEnv(envStepLimit=setting.turns)
        self.env.load(gameName=setting.game, gameParams=setting.parameters)
        self.playing = None

    def game(self, fold, seed):
        return Game(self, fold, seed)

    def gold(self, fold, seed):
        """The commands that win a game. The first one of a gold path looks around, which tells nothing new."""
        self.playing = None
        self.env.reset(seed=seed, gameFold=fold, generateGoldPath=True)
        return [a for a in self.env.getGoldActionSequence() if a != "look around"]

    def go_to(self, game):
        if self.playing is not game:
            self.env.reset(seed=game.seed, gameFold=game.fold)
            for action in game.actions:
                self.env.step(action)
            self.playing = game


class Game:
    """One game: what it says last, and how it stands."""

    def __init__(self, world, fold, seed):
        self.world, self.fold, self.seed, self.actions = world, fold, seed, []
        self.score, self.won, self.over = 0.0, False, False
        world.env.reset(seed=seed, gameFold=fold)
        world.playing = self
        self.text = f"Task: {world.env.getTaskDescription()}\n{self._line(world.env.runHistory[-1]['observation'])}"

    def step(self, action):
        """Gives the reward."""
        self.world.go_to(self)
        observation, reward, self.over, info = self.world.env.step(action)
        self.actions.append(action)
        self.text, self.score, self.won = self._line(observation), info["score"], info["tasksuccess"]
        return reward

    @staticmethod
    def _line(observation):
        return " ".join(observation.split())
