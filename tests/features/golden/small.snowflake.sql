WITH "_READ_1_SENT" AS (
  SELECT
    NULLIF("USER", '') AS "USER",
    NULLIF("ID", '') AS "ID",
    CASE WHEN ABS(CAST("VALUE" AS DOUBLE)) <= 1.7976931348623157e308 THEN CAST("VALUE" AS DOUBLE) END AS "VALUE",
    CASE WHEN ABS("EVENT_TIME") < 9007199254 THEN CAST(ROUND("EVENT_TIME" * 1e6) AS BIGINT) END AS "_SAID",
    CASE WHEN ABS("ARRIVAL") < 9007199254 THEN CAST(ROUND("ARRIVAL" * 1e6) AS BIGINT) END AS "_ARRIVAL",
    "POSITION" AS "_POSITION"
  FROM "SENT"
), "_COPIES_1_SENT" AS (
  SELECT
    *,
    LAG("_ARRIVAL") OVER (PARTITION BY "ID" ORDER BY "_ARRIVAL", "_POSITION") AS "_BEFORE"
  FROM "_READ_1_SENT"
  WHERE
    NOT "_SAID" IS NULL AND NOT "_ARRIVAL" IS NULL
), "_EVENTS_1_SENT" AS (
  SELECT
    "USER",
    "ID",
    "VALUE",
    CASE WHEN "_SAID" < "_ARRIVAL" THEN "_SAID" ELSE "_ARRIVAL" END AS "_TIME",
    "_ARRIVAL",
    "_POSITION"
  FROM "_COPIES_1_SENT"
  WHERE
    "ID" IS NULL OR "_BEFORE" IS NULL OR "_ARRIVAL" - "_BEFORE" > 3600000000
), "_OF_1_SENT_1_USER" AS (
  SELECT
    "USER" AS "_KEY",
    "USER",
    "ID",
    "VALUE",
    "_TIME",
    "_ARRIVAL"
  FROM "_EVENTS_1_SENT"
  WHERE
    NOT "USER" IS NULL
), "_READ_2_ORDERS" AS (
  SELECT
    NULLIF("USER", '') AS "USER",
    NULLIF("ITEM", '') AS "ITEM",
    NULLIF("WORD", '') AS "WORD",
    CASE WHEN ABS(CAST("VALUE" AS DOUBLE)) <= 1.7976931348623157e308 THEN CAST("VALUE" AS DOUBLE) END AS "VALUE",
    CASE WHEN ABS("EVENT_TIME") < 9007199254 THEN CAST(ROUND("EVENT_TIME" * 1e6) AS BIGINT) END AS "_SAID",
    CASE WHEN ABS("ARRIVAL") < 9007199254 THEN CAST(ROUND("ARRIVAL" * 1e6) AS BIGINT) END AS "_ARRIVAL",
    "POSITION" AS "_POSITION"
  FROM "ORDERS"
), "_EVENTS_2_ORDERS" AS (
  SELECT
    "USER",
    "ITEM",
    "WORD",
    "VALUE",
    CASE WHEN "_SAID" < "_ARRIVAL" THEN "_SAID" ELSE "_ARRIVAL" END AS "_TIME",
    "_ARRIVAL",
    "_POSITION"
  FROM "_READ_2_ORDERS"
  WHERE
    NOT "_SAID" IS NULL AND NOT "_ARRIVAL" IS NULL
), "_OF_2_ORDERS_1_ITEM" AS (
  SELECT
    "ITEM" AS "_KEY",
    "USER",
    "ITEM",
    "WORD",
    "VALUE",
    "_TIME",
    "_ARRIVAL"
  FROM "_EVENTS_2_ORDERS"
  WHERE
    NOT "ITEM" IS NULL
), "_OF_2_ORDERS_2_USER" AS (
  SELECT
    "USER" AS "_KEY",
    "USER",
    "ITEM",
    "WORD",
    "VALUE",
    "_TIME",
    "_ARRIVAL",
    ROW_NUMBER() OVER (PARTITION BY "USER" ORDER BY "_TIME", "_ARRIVAL", "_POSITION") AS "_RANK"
  FROM "_EVENTS_2_ORDERS"
  WHERE
    NOT "USER" IS NULL
), "_ASKS_1_USER" AS (
  SELECT DISTINCT
    "USER" AS "_KEY",
    CASE WHEN ABS("EVENT_TIME") < 9007199254 THEN CAST(ROUND("EVENT_TIME" * 1e6) AS BIGINT) END AS "_AT"
  FROM "LABELS"
  WHERE
    "USER" <> '' AND ABS("EVENT_TIME") < 9007199254
), "_ASKS_2_ITEM" AS (
  SELECT DISTINCT
    "ITEM" AS "_KEY",
    CASE WHEN ABS("EVENT_TIME") < 9007199254 THEN CAST(ROUND("EVENT_TIME" * 1e6) AS BIGINT) END AS "_AT"
  FROM "LABELS"
  WHERE
    "ITEM" <> '' AND ABS("EVENT_TIME") < 9007199254
), "_EDGES_1_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    (
      (
        "_AT" - 604800000000
      ) - (
        (
          "_AT" - 604800000000
        ) % 14400000000 + 14400000000
      ) % 14400000000
    ) AS "_FAR",
    (
      "_AT" - (
        "_AT" % 604800000000 + 604800000000
      ) % 604800000000
    ) AS "_BLOCK"
  FROM "_ASKS_1_USER"
), "_CUT_1_USER" AS (
  SELECT
    *
  FROM (
    SELECT
      "_KEY",
      "_TIME",
      "_ARRIVAL",
      (
        "_TIME" - (
          "_TIME" % 604800000000 + 604800000000
        ) % 604800000000
      ) AS "_BLOCK",
      (
        "_ARRIVAL" - (
          "_ARRIVAL" % 604800000000 + 604800000000
        ) % 604800000000
      ) AS "_CAME",
      CASE WHEN (
        "VALUE" > 0.5e0 AND "ID" <> 'x'
      ) THEN 1 END AS "_X0"
    FROM "_OF_1_SENT_1_USER"
  ) AS "_ALL"
  WHERE
    NOT "_X0" IS NULL
), "_BEGUN_1_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    "_C0"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      COUNT("_X0") OVER (PARTITION BY "_KEY", "_BLOCK" ORDER BY "_WHEN", "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C0"
    FROM (
      SELECT
        "_KEY",
        "_AT",
        "_BLOCK",
        "_AT" AS "_WHEN",
        0 AS "_TURN",
        CAST(NULL AS BIGINT) AS "_X0"
      FROM "_EDGES_1_USER"
      UNION ALL
      SELECT
        "_KEY",
        CAST(NULL AS BIGINT),
        "_BLOCK",
        "_ARRIVAL",
        1,
        "_X0"
      FROM "_CUT_1_USER"
      WHERE
        "_CAME" = "_BLOCK"
    ) AS "_BOTH"
  ) AS "_ALONG"
  WHERE
    NOT "_AT" IS NULL
), "_ENDED_1_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    "_C0"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      COUNT("_X0") OVER (PARTITION BY "_KEY", "_BLOCK" ORDER BY "_WHEN" DESC, "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C0"
    FROM (
      SELECT
        "_KEY",
        "_AT",
        "_BLOCK" - 604800000000 AS "_BLOCK",
        "_FAR" AS "_WHEN",
        1 AS "_TURN",
        CAST(NULL AS BIGINT) AS "_X0"
      FROM "_EDGES_1_USER"
      UNION ALL
      SELECT
        "_KEY",
        CAST(NULL AS BIGINT),
        "_BLOCK",
        "_TIME",
        0,
        "_X0"
      FROM "_CUT_1_USER"
      WHERE
        "_CAME" = "_BLOCK"
    ) AS "_BOTH"
  ) AS "_ALONG"
  WHERE
    NOT "_AT" IS NULL
), "_LATE_1_USER" AS (
  SELECT
    "_ASK"."_KEY",
    "_ASK"."_AT",
    CASE WHEN "_X0" IS NULL THEN 0 ELSE 1 END AS "_C0"
  FROM "_EDGES_1_USER" AS "_ASK"
  JOIN "_CUT_1_USER" AS "_EVENT"
    ON "_EVENT"."_KEY" = "_ASK"."_KEY"
    AND "_EVENT"."_CAME" = "_ASK"."_BLOCK"
    AND "_EVENT"."_BLOCK" = "_ASK"."_BLOCK" - 604800000000
  WHERE
    "_EVENT"."_ARRIVAL" < "_ASK"."_AT" AND "_EVENT"."_TIME" >= "_ASK"."_FAR"
), "_WHOLE_1_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    SUM("_C0") AS "_C0"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      "_C0"
    FROM "_BEGUN_1_USER"
    UNION ALL
    SELECT
      "_KEY",
      "_AT",
      "_C0"
    FROM "_ENDED_1_USER"
    UNION ALL
    SELECT
      "_KEY",
      "_AT",
      "_C0"
    FROM "_LATE_1_USER"
  ) AS "_THREE"
  GROUP BY
    "_KEY",
    "_AT"
), "_LOOK_1_USER" AS (
  SELECT
    "_ALL"."_KEY",
    "_ALL"."_AT",
    CAST("_C0" AS DOUBLE) AS "CLICKS_7D"
  FROM "_WHOLE_1_USER" AS "_ALL"
), "_WHOLE_2_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    "_C0"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      COUNT("_X0") OVER (PARTITION BY "_KEY" ORDER BY "_WHEN", "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C0"
    FROM (
      SELECT
        "_KEY",
        "_AT",
        "_AT" AS "_WHEN",
        0 AS "_TURN",
        CAST(NULL AS BIGINT) AS "_X0"
      FROM "_ASKS_1_USER"
      UNION ALL
      SELECT
        "_KEY",
        CAST(NULL AS BIGINT),
        "_ARRIVAL",
        1,
        1 AS "_X0"
      FROM "_OF_1_SENT_1_USER"
    ) AS "_BOTH"
  ) AS "_ALONG"
  WHERE
    NOT "_AT" IS NULL
), "_LOOK_2_USER" AS (
  SELECT
    "_ALL"."_KEY",
    "_ALL"."_AT",
    CAST("_C0" AS DOUBLE) AS "ALL"
  FROM "_WHOLE_2_USER" AS "_ALL"
), "_EDGES_3_ITEM" AS (
  SELECT
    "_KEY",
    "_AT",
    (
      (
        "_AT" - 3600000000
      ) - (
        (
          "_AT" - 3600000000
        ) % 300000000 + 300000000
      ) % 300000000
    ) AS "_FAR",
    (
      "_AT" - (
        "_AT" % 3600000000 + 3600000000
      ) % 3600000000
    ) AS "_BLOCK"
  FROM "_ASKS_2_ITEM"
), "_CUT_3_ITEM" AS (
  SELECT
    *
  FROM (
    SELECT
      "_KEY",
      "_TIME",
      "_ARRIVAL",
      (
        "_TIME" - (
          "_TIME" % 3600000000 + 3600000000
        ) % 3600000000
      ) AS "_BLOCK",
      (
        "_ARRIVAL" - (
          "_ARRIVAL" % 3600000000 + 3600000000
        ) % 3600000000
      ) AS "_CAME",
      "VALUE" AS "_X0"
    FROM "_OF_2_ORDERS_1_ITEM"
  ) AS "_ALL"
  WHERE
    NOT "_X0" IS NULL
), "_BEGUN_3_ITEM" AS (
  SELECT
    "_KEY",
    "_AT",
    "_C0",
    "_C1"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      SUM("_X0") OVER (PARTITION BY "_KEY", "_BLOCK" ORDER BY "_WHEN", "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C0",
      COUNT("_X0") OVER (PARTITION BY "_KEY", "_BLOCK" ORDER BY "_WHEN", "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C1"
    FROM (
      SELECT
        "_KEY",
        "_AT",
        "_BLOCK",
        "_AT" AS "_WHEN",
        0 AS "_TURN",
        CAST(NULL AS DOUBLE) AS "_X0"
      FROM "_EDGES_3_ITEM"
      UNION ALL
      SELECT
        "_KEY",
        CAST(NULL AS BIGINT),
        "_BLOCK",
        "_ARRIVAL",
        1,
        "_X0"
      FROM "_CUT_3_ITEM"
      WHERE
        "_CAME" = "_BLOCK"
    ) AS "_BOTH"
  ) AS "_ALONG"
  WHERE
    NOT "_AT" IS NULL
), "_ENDED_3_ITEM" AS (
  SELECT
    "_KEY",
    "_AT",
    "_C0",
    "_C1"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      SUM("_X0") OVER (PARTITION BY "_KEY", "_BLOCK" ORDER BY "_WHEN" DESC, "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C0",
      COUNT("_X0") OVER (PARTITION BY "_KEY", "_BLOCK" ORDER BY "_WHEN" DESC, "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C1"
    FROM (
      SELECT
        "_KEY",
        "_AT",
        "_BLOCK" - 3600000000 AS "_BLOCK",
        "_FAR" AS "_WHEN",
        1 AS "_TURN",
        CAST(NULL AS DOUBLE) AS "_X0"
      FROM "_EDGES_3_ITEM"
      UNION ALL
      SELECT
        "_KEY",
        CAST(NULL AS BIGINT),
        "_BLOCK",
        "_TIME",
        0,
        "_X0"
      FROM "_CUT_3_ITEM"
      WHERE
        "_CAME" = "_BLOCK"
    ) AS "_BOTH"
  ) AS "_ALONG"
  WHERE
    NOT "_AT" IS NULL
), "_LATE_3_ITEM" AS (
  SELECT
    "_ASK"."_KEY",
    "_ASK"."_AT",
    "_X0" AS "_C0",
    CASE WHEN "_X0" IS NULL THEN 0 ELSE 1 END AS "_C1"
  FROM "_EDGES_3_ITEM" AS "_ASK"
  JOIN "_CUT_3_ITEM" AS "_EVENT"
    ON "_EVENT"."_KEY" = "_ASK"."_KEY"
    AND "_EVENT"."_CAME" = "_ASK"."_BLOCK"
    AND "_EVENT"."_BLOCK" = "_ASK"."_BLOCK" - 3600000000
  WHERE
    "_EVENT"."_ARRIVAL" < "_ASK"."_AT" AND "_EVENT"."_TIME" >= "_ASK"."_FAR"
), "_WHOLE_3_ITEM" AS (
  SELECT
    "_KEY",
    "_AT",
    SUM("_C0") AS "_C0",
    SUM("_C1") AS "_C1"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      "_C0",
      "_C1"
    FROM "_BEGUN_3_ITEM"
    UNION ALL
    SELECT
      "_KEY",
      "_AT",
      "_C0",
      "_C1"
    FROM "_ENDED_3_ITEM"
    UNION ALL
    SELECT
      "_KEY",
      "_AT",
      "_C0",
      "_C1"
    FROM "_LATE_3_ITEM"
  ) AS "_THREE"
  GROUP BY
    "_KEY",
    "_AT"
), "_LOOK_3_ITEM" AS (
  SELECT
    "_ALL"."_KEY",
    "_ALL"."_AT",
    "_C0" / NULLIF(CAST("_C1" AS DOUBLE), 0e0) AS "MEAN_1H"
  FROM "_WHOLE_3_ITEM" AS "_ALL"
), "_WHOLE_4_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    "_C0"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      MAX("_X0") OVER (PARTITION BY "_KEY" ORDER BY "_WHEN", "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_C0"
    FROM (
      SELECT
        "_KEY",
        "_AT",
        "_AT" AS "_WHEN",
        0 AS "_TURN",
        CAST(NULL AS BIGINT) AS "_X0"
      FROM "_ASKS_1_USER"
      UNION ALL
      SELECT
        "_KEY",
        CAST(NULL AS BIGINT),
        "_ARRIVAL",
        1,
        CASE WHEN NOT "WORD" IS NULL THEN "_RANK" END AS "_X0"
      FROM "_OF_2_ORDERS_2_USER"
    ) AS "_BOTH"
  ) AS "_ALONG"
  WHERE
    NOT "_AT" IS NULL
), "_LOOK_4_USER" AS (
  SELECT
    "_ALL"."_KEY",
    "_ALL"."_AT",
    "_LATEST_0"."WORD" AS "LAST"
  FROM "_WHOLE_4_USER" AS "_ALL"
  LEFT JOIN "_OF_2_ORDERS_2_USER" AS "_LATEST_0"
    ON "_LATEST_0"."_KEY" = "_ALL"."_KEY" AND "_LATEST_0"."_RANK" = "_ALL"."_C0"
), "_EDGES_5_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    (
      (
        "_AT" - 86400000000
      ) - (
        (
          "_AT" - 86400000000
        ) % 14400000000 + 14400000000
      ) % 14400000000
    ) AS "_FAR",
    (
      "_AT" - (
        "_AT" % 86400000000 + 86400000000
      ) % 86400000000
    ) AS "_BLOCK"
  FROM "_ASKS_1_USER"
), "_PAIRS_5_USER" AS (
  SELECT
    "_ASK"."_KEY",
    "_ASK"."_AT",
    "_EVENT"."_TIME",
    "_EVENT"."_X0"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      "_FAR",
      "_BLOCK"
    FROM "_EDGES_5_USER"
    UNION ALL
    SELECT
      "_KEY",
      "_AT",
      "_FAR",
      "_BLOCK" - 86400000000
    FROM "_EDGES_5_USER"
  ) AS "_ASK"
  JOIN (
    SELECT
      "_KEY",
      "_TIME",
      "_ARRIVAL",
      (
        "_TIME" - (
          "_TIME" % 86400000000 + 86400000000
        ) % 86400000000
      ) AS "_BLOCK",
      "VALUE" AS "_X0"
    FROM "_OF_2_ORDERS_2_USER"
  ) AS "_EVENT"
    ON "_EVENT"."_KEY" = "_ASK"."_KEY" AND "_EVENT"."_BLOCK" = "_ASK"."_BLOCK"
  WHERE
    (
      NOT "_EVENT"."_X0" IS NULL
    ) AND "_EVENT"."_ARRIVAL" < "_ASK"."_AT" AND "_EVENT"."_TIME" >= "_ASK"."_FAR"
), "_NUMBERED_5_USER" AS (
  SELECT
    *,
    DENSE_RANK() OVER (PARTITION BY "_KEY", "_AT" ORDER BY CASE WHEN "_X0" IS NULL THEN 1 ELSE 0 END, "_X0") AS "_SAME0"
  FROM "_PAIRS_5_USER"
), "_TOLD_5_USER" AS (
  SELECT
    *,
    COUNT(*) OVER (PARTITION BY "_KEY", "_AT", "_SAME0") AS "_OFTEN0",
    ROW_NUMBER() OVER (PARTITION BY "_KEY", "_AT", "_SAME0" ORDER BY "_TIME") AS "_FIRST0"
  FROM "_NUMBERED_5_USER"
), "_ORDERED_5_USER" AS (
  SELECT
    *,
    ROW_NUMBER() OVER (
      PARTITION BY "_KEY", "_AT"
      ORDER BY CASE WHEN NOT "_X0" IS NULL AND "_FIRST0" = 1 THEN 0 ELSE 1 END, "_OFTEN0" DESC, "_X0"
    ) AS "_PLACE0"
  FROM "_TOLD_5_USER"
), "_LOOK_5_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    MAX(CASE WHEN "_FIRST0" = 1 AND "_PLACE0" = 1 THEN "_X0" END) AS "OFTEN_0",
    MAX(CASE WHEN "_FIRST0" = 1 AND "_PLACE0" = 2 THEN "_X0" END) AS "OFTEN_1"
  FROM "_ORDERED_5_USER"
  GROUP BY
    "_KEY",
    "_AT"
), "_PAIRS_6_USER" AS (
  SELECT
    "_ASK"."_KEY",
    "_ASK"."_AT",
    "_EVENT"."_TIME",
    "_EVENT"."_X0"
  FROM "_ASKS_1_USER" AS "_ASK"
  JOIN (
    SELECT
      "_KEY",
      "_TIME",
      "_ARRIVAL",
      CASE WHEN NOT "WORD" IN ('it\'s', 'a') THEN "VALUE" END AS "_X0"
    FROM "_OF_2_ORDERS_2_USER"
  ) AS "_EVENT"
    ON "_EVENT"."_KEY" = "_ASK"."_KEY"
  WHERE
    (
      NOT "_EVENT"."_X0" IS NULL
    ) AND "_EVENT"."_ARRIVAL" < "_ASK"."_AT"
), "_LOOK_6_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    SUM("_X0" * POWER(0.5e0, CAST("_AT" - "_TIME" AS DOUBLE) / 3600000000.0e0)) AS "FADED"
  FROM "_PAIRS_6_USER"
  GROUP BY
    "_KEY",
    "_AT"
), "_EDGES_7_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    (
      (
        "_AT" - 604800000000
      ) - (
        (
          "_AT" - 604800000000
        ) % 14400000000 + 14400000000
      ) % 14400000000
    ) AS "_FAR",
    (
      "_AT" - (
        "_AT" % 604800000000 + 604800000000
      ) % 604800000000
    ) AS "_BLOCK"
  FROM "_ASKS_1_USER"
), "_PAIRS_7_USER" AS (
  SELECT
    "_ASK"."_KEY",
    "_ASK"."_AT",
    "_EVENT"."_TIME",
    "_EVENT"."_X0"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      "_FAR",
      "_BLOCK"
    FROM "_EDGES_7_USER"
    UNION ALL
    SELECT
      "_KEY",
      "_AT",
      "_FAR",
      "_BLOCK" - 604800000000
    FROM "_EDGES_7_USER"
  ) AS "_ASK"
  JOIN (
    SELECT
      "_KEY",
      "_TIME",
      "_ARRIVAL",
      (
        "_TIME" - (
          "_TIME" % 604800000000 + 604800000000
        ) % 604800000000
      ) AS "_BLOCK",
      "VALUE" AS "_X0"
    FROM "_OF_2_ORDERS_2_USER"
  ) AS "_EVENT"
    ON "_EVENT"."_KEY" = "_ASK"."_KEY" AND "_EVENT"."_BLOCK" = "_ASK"."_BLOCK"
  WHERE
    (
      NOT "_EVENT"."_X0" IS NULL
    ) AND "_EVENT"."_ARRIVAL" < "_ASK"."_AT" AND "_EVENT"."_TIME" >= "_ASK"."_FAR"
), "_LOOK_7_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    SQRT(VAR_POP("_X0")) AS "STD"
  FROM "_PAIRS_7_USER"
  GROUP BY
    "_KEY",
    "_AT"
), "_EDGES_8_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    (
      (
        "_AT" - 2592000000000
      ) - (
        (
          "_AT" - 2592000000000
        ) % 86400000000 + 86400000000
      ) % 86400000000
    ) AS "_FAR",
    (
      "_AT" - (
        "_AT" % 2592000000000 + 2592000000000
      ) % 2592000000000
    ) AS "_BLOCK"
  FROM "_ASKS_1_USER"
), "_CUT_8_USER" AS (
  SELECT
    *,
    CASE
      WHEN "_RANK" = MAX("_RANK") OVER (PARTITION BY "_KEY" ORDER BY "_ARRIVAL", "_RANK" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
      THEN 1
      ELSE 0
    END AS "_NEW"
  FROM (
    SELECT
      "_KEY",
      "_TIME",
      "_ARRIVAL",
      "_RANK",
      "ITEM" AS "_X"
    FROM "_OF_2_ORDERS_2_USER"
  ) AS "_ALL"
  WHERE
    NOT "_X" IS NULL
), "_AGED_8_USER" AS (
  SELECT
    "_KEY",
    "_TIME",
    "_ARRIVAL",
    "_RANK",
    "_X",
    CAST(SUM("_NEW") OVER (PARTITION BY "_KEY" ORDER BY "_ARRIVAL", "_RANK" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS BIGINT) AS "_AGE"
  FROM "_CUT_8_USER"
), "_KNOWN_8_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    "_FAR",
    "_AGE"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      "_FAR",
      MAX("_AGE") OVER (PARTITION BY "_KEY" ORDER BY "_WHEN", "_TURN" ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS "_AGE"
    FROM (
      SELECT
        "_KEY",
        "_AT",
        "_FAR",
        "_AT" AS "_WHEN",
        0 AS "_TURN",
        CAST(NULL AS BIGINT) AS "_AGE"
      FROM "_EDGES_8_USER"
      UNION ALL
      SELECT
        "_KEY",
        CAST(NULL AS BIGINT),
        CAST(NULL AS BIGINT),
        "_ARRIVAL",
        1,
        "_AGE"
      FROM "_AGED_8_USER"
    ) AS "_BOTH"
  ) AS "_ALONG"
  WHERE
    NOT "_AT" IS NULL AND NOT "_AGE" IS NULL
), "_ORDERED_8_USER" AS (
  SELECT
    "_ASK"."_KEY",
    "_ASK"."_AT",
    "_EVENT"."_X",
    ROW_NUMBER() OVER (PARTITION BY "_ASK"."_KEY", "_ASK"."_AT" ORDER BY "_EVENT"."_RANK" DESC) AS "_PLACE"
  FROM (
    SELECT
      "_KEY",
      "_AT",
      "_FAR",
      "_AGE" - "_BACK" AS "_AGE"
    FROM "_KNOWN_8_USER" AS "_ALL"
    CROSS JOIN (
      SELECT
        0 AS "_BACK"
      UNION ALL
      SELECT
        1 AS "_BACK"
      UNION ALL
      SELECT
        2 AS "_BACK"
    ) AS "_STEPS"
  ) AS "_ASK"
  JOIN "_AGED_8_USER" AS "_EVENT"
    ON "_EVENT"."_KEY" = "_ASK"."_KEY" AND "_EVENT"."_AGE" = "_ASK"."_AGE"
  WHERE
    "_EVENT"."_ARRIVAL" < "_ASK"."_AT" AND "_EVENT"."_TIME" >= "_ASK"."_FAR"
), "_LOOK_8_USER" AS (
  SELECT
    "_KEY",
    "_AT",
    MAX(CASE WHEN "_PLACE" = 1 THEN "_X" END) AS "HISTORY_0",
    MAX(CASE WHEN "_PLACE" = 2 THEN "_X" END) AS "HISTORY_1",
    MAX(CASE WHEN "_PLACE" = 3 THEN "_X" END) AS "HISTORY_2"
  FROM "_ORDERED_8_USER"
  WHERE
    "_PLACE" <= 3
  GROUP BY
    "_KEY",
    "_AT"
)
SELECT
  "_LABELS".*,
  (
    (
      COALESCE("_LOOK_1_USER"."CLICKS_7D", 0e0) + 1.0e0
    ) / NULLIF(COALESCE("_LOOK_2_USER"."ALL", 0e0) + 20.0e0, 0e0)
  ) AS "RATE",
  "_LOOK_3_ITEM"."MEAN_1H" AS "MEAN_1H",
  "_LOOK_4_USER"."LAST" AS "LAST",
  "_LOOK_5_USER"."OFTEN_0" AS "OFTEN_0",
  "_LOOK_5_USER"."OFTEN_1" AS "OFTEN_1",
  "_LOOK_6_USER"."FADED" AS "FADED",
  "_LOOK_7_USER"."STD" AS "STD",
  "_LOOK_8_USER"."HISTORY_0" AS "HISTORY_0",
  "_LOOK_8_USER"."HISTORY_1" AS "HISTORY_1",
  "_LOOK_8_USER"."HISTORY_2" AS "HISTORY_2"
FROM "LABELS" AS "_LABELS"
LEFT JOIN "_LOOK_1_USER"
  ON "_LOOK_1_USER"."_KEY" = "_LABELS"."USER"
  AND "_LOOK_1_USER"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
LEFT JOIN "_LOOK_2_USER"
  ON "_LOOK_2_USER"."_KEY" = "_LABELS"."USER"
  AND "_LOOK_2_USER"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
LEFT JOIN "_LOOK_3_ITEM"
  ON "_LOOK_3_ITEM"."_KEY" = "_LABELS"."ITEM"
  AND "_LOOK_3_ITEM"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
LEFT JOIN "_LOOK_4_USER"
  ON "_LOOK_4_USER"."_KEY" = "_LABELS"."USER"
  AND "_LOOK_4_USER"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
LEFT JOIN "_LOOK_5_USER"
  ON "_LOOK_5_USER"."_KEY" = "_LABELS"."USER"
  AND "_LOOK_5_USER"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
LEFT JOIN "_LOOK_6_USER"
  ON "_LOOK_6_USER"."_KEY" = "_LABELS"."USER"
  AND "_LOOK_6_USER"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
LEFT JOIN "_LOOK_7_USER"
  ON "_LOOK_7_USER"."_KEY" = "_LABELS"."USER"
  AND "_LOOK_7_USER"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
LEFT JOIN "_LOOK_8_USER"
  ON "_LOOK_8_USER"."_KEY" = "_LABELS"."USER"
  AND "_LOOK_8_USER"."_AT" = CASE WHEN ABS("_LABELS"."EVENT_TIME") < 9007199254 THEN CAST(ROUND("_LABELS"."EVENT_TIME" * 1e6) AS BIGINT) END
