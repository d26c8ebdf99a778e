// The confirmation page of a one-tap link: the offered reasons as buttons. It works without this script.

import { offerReasons } from "./reasons.js";

offerReasons();
